package main

import (
	"golang.org/x/net/http2/hpack"
)

// requests are the frames of all calls, with the stream left open; headers by connection.
type requests struct {
	headers [][][]byte
	bodies  [][]byte
	largest int
}

func encode(asked *plan) *requests {
	r := &requests{}
	for _, sequence := range asked.Blocks {
		var headers [][]byte
		for _, block := range sequence {
			headers = append(headers, frame(typeHeaders, flagEndHeaders, 0, block))
		}
		r.headers = append(r.headers, headers)
	}
	for _, body := range asked.Bodies {
		r.bodies = append(r.bodies, frame(typeData, flagEndStream, 0, body))
		r.largest = max(r.largest, len(body))
	}
	return r
}

// answers judges the header blocks of one connection. Most repeat: a block that leaves the decoder's table as it is
// means the same until the table changes, so it is decoded once.
type answers struct {
	decoder *hpack.Decoder
	expect  string
	known   map[string]string
	problem string
	status  bool // there was a grpc-status
}

const mostKnown = 1000

func newAnswers(status string) *answers {
	a := &answers{expect: status, known: map[string]string{}}
	a.decoder = hpack.NewDecoder(4096, a.field)
	return a
}

func (a *answers) field(f hpack.HeaderField) {
	a.status = a.status || f.Name == "grpc-status"
	if (f.Name == ":status" && f.Value != "200") || (f.Name == "grpc-status" && f.Value != a.expect) {
		a.problem = f.Name + " " + f.Value
	} else if f.Name == "grpc-message" && a.problem != "" {
		a.problem += " " + f.Value
	}
}

// judge tells what is wrong with a block, "" when nothing is. The last of an answer must hold its grpc-status.
func (a *answers) judge(block []byte, last bool) string {
	if problem, found := a.known[string(block)]; found {
		return problem
	}
	a.problem, a.status = "", false
	_, err := a.decoder.Write(block)
	check(err)
	check(a.decoder.Close())
	if last && !a.status {
		a.problem = "no grpc-status"
	}
	if changesTable(block) || len(a.known) >= mostKnown {
		clear(a.known)
	}
	if !changesTable(block) {
		a.known[string(block)] = a.problem
	}
	return a.problem
}

// changesTable tells whether a valid block inserts a field or sets the size of the table (RFC 7541 section 6).
func changesTable(block []byte) bool {
	for len(block) > 0 {
		first := block[0]
		switch {
		case first&0x80 != 0:
			_, block = integer(block, 7)
		case first&0x60 != 0: // 01: incremental indexing, 001: size update
			return true
		default:
			var index int
			if index, block = integer(block, 4); index == 0 {
				block = text(block)
			}
			block = text(block)
		}
	}
	return false
}

func integer(block []byte, bits int) (int, []byte) {
	limit := 1<<bits - 1
	value := int(block[0]) & limit
	block = block[1:]
	if value < limit {
		return value, block
	}
	for shift := 0; ; shift += 7 {
		next := block[0]
		block = block[1:]
		value += int(next&0x7f) << shift
		if next&0x80 == 0 {
			return value, block
		}
	}
}

func text(block []byte) []byte {
	length, rest := integer(block, 7)
	return rest[length:]
}
