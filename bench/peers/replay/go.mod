module avapd/bench/replay

go 1.26.0

require golang.org/x/net v0.60.0
