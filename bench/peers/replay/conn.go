package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"strconv"
	"syscall"
)

// Frame types, flags and settings of RFC 9113 that it has to do with.
const (
	typeData, typeHeaders, typeReset, typeSettings           = 0, 1, 3, 4
	typePing, typeGoAway, typeWindowUpdate, typeContinuation = 6, 7, 8, 9
	flagEndStream, flagAck, flagEndHeaders                   = 1, 1, 4
	headerTableSize, maxConcurrentStreams, initialWindowSize = 1, 3, 4
	frameHead                                                = 9
	preface                                                  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	window                                                   = 1 << 30
	ring                                                     = 4096
	mostOpen                                                 = 1000 // calls under way on a connection; others wait here
)

// conn is one connection. It begins calls as the windows, the server's limit and the plan allow.
type conn struct {
	loop     *loop
	requests *requests
	headers  [][]byte
	first    int // the body of its first call
	fd       int
	ready    bool // the server's SETTINGS are there
	in       []byte
	filled   int
	skip     int // bytes of DATA that are still to come and that nobody looks at
	out      []byte
	blocked  bool // the socket takes no more
	next     uint32
	turn     int
	open     int
	limit    int
	credit   int // bytes of DATA the server takes on this connection
	consumed int // bytes of DATA since our last WINDOW_UPDATE
	waiting  []int64
	calls    [ring]call
	answers  *answers
}

// call is a stream under way.
type call struct {
	id      uint32
	data    int
	due     int64
	problem string
}

func dial(l *loop, r *requests, number int) *conn {
	// Blocking until it is connected; Go's own connections belong to its own poller.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(err)
	check(syscall.Connect(fd, &syscall.SockaddrInet4{Port: l.plan.Port, Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}))
	check(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1))
	check(syscall.SetNonblock(fd, true))
	c := &conn{loop: l, requests: r, fd: fd, in: make([]byte, 256<<10), next: 1, limit: mostOpen, credit: 65535}
	c.headers = r.headers[number%len(r.headers)]
	c.first = number * len(r.bodies) / l.plan.Connections
	c.answers = newAnswers(l.plan.GRPCStatus)
	settings := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, initialWindowSize), window)
	c.out = append(c.out, preface...)
	c.out = append(c.out, frame(typeSettings, 0, 0, settings)...)
	c.grow(window - 65535)
	l.poller.add(c)
	c.flush()
	return c
}

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[5:], stream)
	return append(head, payload...)
}

func (c *conn) grow(by int) {
	c.out = append(c.out, frame(typeWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(by)))...)
}

// pump begins the calls that may begin now.
func (c *conn) pump(now int64) {
	if !c.ready || c.loop.until == 0 {
		return
	}
	if c.loop.open() {
		begun := 0
		for ; begun < len(c.waiting) && c.open < c.limit && c.begin(c.waiting[begun]); begun++ {
		}
		c.waiting = c.waiting[:copy(c.waiting, c.waiting[begun:])]
		return
	}
	for now < c.loop.until && c.open < min(c.limit, c.loop.plan.Streams) && c.begin(now) {
	}
}

func (c *conn) begin(due int64) bool {
	body := c.requests.bodies[(c.first+c.turn)%len(c.requests.bodies)]
	if len(body)-frameHead > c.credit {
		return false
	}
	slot := &c.calls[c.next/2%ring]
	if slot.id != 0 {
		log.Fatalf("stream %d is not answered %d calls later", slot.id, ring)
	}
	*slot = call{id: c.next, due: due}
	for _, part := range [...][]byte{c.headers[c.turn%len(c.headers)], body} {
		at := len(c.out)
		c.out = append(c.out, part...)
		binary.BigEndian.PutUint32(c.out[at+5:], c.next)
	}
	c.credit -= len(body) - frameHead
	c.next += 2
	c.turn++
	c.open++
	return true
}

func (c *conn) flush() {
	for len(c.out) > 0 {
		n, err := write(c.fd, c.out)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		check(err)
		c.out = c.out[:copy(c.out, c.out[n:])]
	}
	if blocked := len(c.out) > 0; blocked != c.blocked {
		c.blocked = blocked
		c.loop.poller.want(c, blocked)
	}
}

// receive reads once and takes every whole frame; of DATA the head is enough.
func (c *conn) receive() {
	n, err := read(c.fd, c.in[c.filled:])
	if errors.Is(err, syscall.EAGAIN) {
		return
	}
	check(err)
	if n == 0 {
		log.Fatal("the server closed a connection")
	}
	c.filled += n
	now := c.loop.now()
	rest := c.in[:c.filled]
	for {
		skipped := min(c.skip, len(rest))
		c.skip -= skipped
		rest = rest[skipped:]
		if c.skip > 0 || len(rest) < frameHead {
			break
		}
		length := int(rest[0])<<16 | int(rest[1])<<8 | int(rest[2])
		if rest[3] == typeData {
			c.data(length, rest[4], binary.BigEndian.Uint32(rest[5:]), now)
			c.skip = length
			rest = rest[frameHead:]
			continue
		}
		if len(rest) < frameHead+length {
			break
		}
		c.take(rest[3], rest[4], binary.BigEndian.Uint32(rest[5:]), rest[frameHead:frameHead+length], now)
		rest = rest[frameHead+length:]
	}
	c.filled = copy(c.in, rest)
}

func (c *conn) data(length int, flags byte, stream uint32, now int64) {
	if slot := &c.calls[stream/2%ring]; slot.id == stream {
		slot.data += length
	}
	if flags&flagEndStream != 0 {
		c.end(stream, now, "the answer ends without trailers")
	}
	if c.consumed += length; c.consumed > window/2 {
		c.grow(c.consumed)
		c.consumed = 0
	}
}

func (c *conn) take(kind, flags byte, stream uint32, payload []byte, now int64) {
	switch kind {
	case typeHeaders:
		if flags != flagEndHeaders && flags != flagEndHeaders|flagEndStream {
			log.Fatalf("HEADERS with the flags %#x", flags)
		}
		last := flags&flagEndStream != 0
		problem := c.answers.judge(payload, last)
		slot := &c.calls[stream/2%ring]
		if slot.problem == "" {
			slot.problem = problem
		}
		if last {
			if problem = slot.problem; problem == "" && slot.data != c.loop.plan.AnswerBytes {
				problem = "the answer has " + strconv.Itoa(slot.data) + " bytes"
			}
			c.end(stream, now, problem)
		}
	case typeReset:
		if slot := &c.calls[stream/2%ring]; slot.id == stream { // RST_STREAM(NO_ERROR) may follow an answer
			c.end(stream, now, fmt.Sprintf("RST_STREAM %d", binary.BigEndian.Uint32(payload)))
		}
	case typeSettings:
		if flags&flagAck == 0 {
			c.obey(payload)
		}
	case typePing:
		if flags&flagAck == 0 {
			c.out = append(c.out, frame(typePing, flagAck, 0, payload)...)
		}
	case typeWindowUpdate:
		if stream == 0 {
			c.credit += int(binary.BigEndian.Uint32(payload))
		}
	case typeGoAway:
		log.Fatalf("GOAWAY %d %s", binary.BigEndian.Uint32(payload[4:]), payload[8:])
	case typeContinuation:
		log.Fatal("CONTINUATION: answers here have small headers")
	}
}

func (c *conn) obey(settings []byte) {
	for ; len(settings) >= 6; settings = settings[6:] {
		value := int(binary.BigEndian.Uint32(settings[2:]))
		switch binary.BigEndian.Uint16(settings) {
		case headerTableSize:
			if value < 4096 {
				log.Fatalf("the blocks need a table of 4096 bytes, the server has %d", value)
			}
		case maxConcurrentStreams:
			c.limit = min(value, mostOpen)
		case initialWindowSize:
			if value < c.requests.largest {
				log.Fatalf("a request has %d bytes, a stream's window %d", c.requests.largest, value)
			}
		}
	}
	c.ready = true
	c.out = append(c.out, frame(typeSettings, flagAck, 0, nil)...)
}

func (c *conn) end(stream uint32, now int64, problem string) {
	slot := &c.calls[stream/2%ring]
	if slot.id != stream {
		log.Fatalf("an answer on stream %d, which waits for none", stream)
	}
	slot.id = 0
	c.open--
	c.loop.ended(slot.due, now, problem)
}

// abandon counts what was never answered.
func (c *conn) abandon(now int64) {
	for i := range c.calls {
		if c.calls[i].id != 0 {
			c.waiting = append(c.waiting, c.calls[i].due)
		}
	}
	for _, due := range c.waiting {
		c.loop.seen.Unanswered++
		c.loop.latency.record(now - due)
	}
}
