// A client that writes requests which were encoded before, so that the server is the limit and not the client.
//
//	replay PLAN.json
//
// One thread, one epoll loop. Without a rate it is a closed loop: on each connection so many calls are under way at any
// time. With a rate it is an open loop: calls begin when they are due, whatever became of those before, and a latency
// counts from the moment the call was due, not from when it could be written (no coordinated omission). Of every answer
// it checks the HTTP status, grpc-status and the number of bytes. It prints `started`, and at the end what it saw (JSON).
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// plan is what is asked for. Blocks are sequences of HPACK header blocks, one for each connection (or for several); the
// first block of a sequence empties the decoder's table, so that the last can be followed by the first. Bodies are the
// contents of the DATA frame after them, taken in turn, each connection from another one on. AnswerBytes is the DATA of
// an answer, its gRPC prefix included.
type plan struct {
	Port        int        `json:"port"`
	Connections int        `json:"connections"`
	Streams     int        `json:"streams"`
	Rate        float64    `json:"rate"`
	Seconds     float64    `json:"seconds"`
	Warmup      float64    `json:"warmup"`
	Blocks      [][][]byte `json:"blocks"`
	Bodies      [][]byte   `json:"bodies"`
	GRPCStatus  string     `json:"grpc_status"`
	AnswerBytes int        `json:"answer_bytes"`
}

// seen is what came of it. Calls and times leave the warm-up out. Failed are wrong answers and reset streams, Unanswered
// those without an answer drainSeconds after the last call was begun; the latency counts up to then, so that no server
// gains by failing. LateP99 tells how well the client kept to its schedule.
type seen struct {
	Calls      int            `json:"calls"`
	Failed     int            `json:"failed"`
	Unanswered int            `json:"unanswered"`
	Seconds    float64        `json:"seconds"`
	CPUSeconds float64        `json:"cpu_seconds"`
	Latency    map[string]any `json:"latency"`
	LateP99    float64        `json:"late_p99_ms"`
	Failures   map[string]int `json:"failures"`
}

const drainSeconds = 5

func main() {
	log.SetFlags(0)
	runtime.LockOSThread()
	debug.SetGCPercent(400)
	raw, err := os.ReadFile(os.Args[1])
	check(err)
	asked := &plan{}
	check(json.Unmarshal(raw, asked))
	l := newLoop(asked)
	fmt.Println("started")
	check(json.NewEncoder(os.Stdout).Encode(l.run()))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// loop is the one event loop: the schedule, and the connections it turns on.
type loop struct {
	plan    *plan
	poller  *poller
	conns   []*conn
	start   time.Time
	from    int64 // what is due before belongs to the warm-up
	until   int64 // nothing is due any more
	due     int64 // when the next call begins (open loop)
	begun   int   // calls so far (open loop)
	latency histogram
	late    histogram
	seen    seen
}

func newLoop(asked *plan) *loop {
	l := &loop{plan: asked, poller: newPoller(), start: time.Now()}
	l.seen.Failures = map[string]int{}
	requests := encode(asked)
	for i := range asked.Connections {
		l.conns = append(l.conns, dial(l, requests, i))
	}
	for _, c := range l.conns {
		for !c.ready { // the server's SETTINGS bind us from the first call on
			l.turn(time.Second)
		}
	}
	return l
}

func (l *loop) now() int64 { return int64(time.Since(l.start)) }

func (l *loop) open() bool { return l.plan.Rate > 0 }

func (l *loop) run() *seen {
	second := float64(time.Second)
	began := l.now()
	l.from = began + int64(l.plan.Warmup*second)
	l.until = l.from + int64(l.plan.Seconds*second)
	l.due = began
	if l.open() {
		l.runOpen(began)
	} else {
		l.runClosed()
	}
	// A closed loop lasts until its last answer: those calls are counted.
	l.seen.Seconds = l.plan.Seconds
	l.drain()
	if !l.open() {
		l.seen.Seconds = float64(l.now()-l.from) / second
	}
	l.seen.Latency = l.latency.milliseconds()
	l.seen.LateP99 = l.late.percentile(99) / 1e6
	var used syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	l.seen.CPUSeconds = float64(used.Utime.Nano()+used.Stime.Nano()) / second
	return &l.seen
}

func (l *loop) runClosed() {
	for _, c := range l.conns {
		c.pump(l.now())
		c.flush()
	}
	for now := l.now(); now < l.until; now = l.now() {
		l.turn(time.Duration(l.until - now))
	}
}

func (l *loop) runOpen(began int64) {
	interval := float64(time.Second) / l.plan.Rate
	for l.due < l.until {
		for now := l.now(); l.due <= now && l.due < l.until; now = l.now() {
			c := l.conns[l.begun%len(l.conns)]
			c.waiting = append(c.waiting, l.due)
			if l.due >= l.from {
				l.late.record(now - l.due)
			}
			c.pump(now)
			c.flush()
			l.begun++
			l.due = began + int64(float64(l.begun)*interval)
		}
		l.turn(time.Duration(max(0, min(l.due, l.until)-l.now())))
	}
}

// drain waits for the answers that are still to come.
func (l *loop) drain() {
	for end := l.now() + drainSeconds*int64(time.Second); l.underWay() && l.now() < end; {
		l.turn(50 * time.Millisecond)
	}
	for _, c := range l.conns {
		c.abandon(l.now())
	}
}

func (l *loop) underWay() bool {
	for _, c := range l.conns {
		if c.open > 0 || len(c.waiting) > 0 {
			return true
		}
	}
	return false
}

// turn waits for at most so long, and serves the connections that have something.
func (l *loop) turn(wait time.Duration) {
	for _, fd := range l.poller.wait(wait) {
		c := l.poller.conns[fd]
		c.receive()
		c.pump(l.now())
		c.flush()
	}
}

// ended takes the end of a call that was due at `due`.
func (l *loop) ended(due, now int64, problem string) {
	if problem != "" {
		l.seen.Failed++
		l.seen.Failures[problem]++
	}
	if due < l.from {
		return
	}
	if problem == "" {
		l.seen.Calls++
	}
	l.latency.record(now - due)
}
