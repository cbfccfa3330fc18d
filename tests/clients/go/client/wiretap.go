package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
)

const (
	framePing   = 0x6
	frameGoaway = 0x7
	flagAck     = 0x1
)

// What grpc-go puts into the PINGs by which it measures bandwidth; those of its keepalive are all zero.
var keepalivePing = make([]byte, 8)

// wiretap sees what grpc-go does not tell its users: each connection made, each GOAWAY and each answered keepalive.
type wiretap struct {
	mutex   sync.Mutex
	dials   int
	acks    int
	octets  int
	goaways []string
}

func (t *wiretap) dial(ctx context.Context, target string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	t.mutex.Lock()
	t.dials++
	t.mutex.Unlock()
	return &tapped{Conn: conn, tap: t}, nil
}

func (t *wiretap) frame(kind, flags byte, payload []byte) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	switch {
	case kind == framePing && flags&flagAck != 0 && bytes.Equal(payload, keepalivePing):
		t.acks++
	case kind == frameGoaway && len(payload) >= 8:
		t.goaways = append(t.goaways, fmt.Sprintf("%d %s", binary.BigEndian.Uint32(payload[4:8]), payload[8:]))
	}
}

func (t *wiretap) count(octets int) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.octets += octets
}

// came tells how many octets have come since it was asked last.
func (t *wiretap) came() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	came := t.octets
	t.octets = 0
	return came
}

// seen fills in what was seen so far.
func (t *wiretap) seen(l line) line {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	l.Dials, l.Acks, l.Goaways = t.dials, t.acks, append([]string{}, t.goaways...)
	return l
}

// tapped follows the frames that arrive on a connection. Payloads are kept only of frames that are told.
type tapped struct {
	net.Conn
	tap     *wiretap
	head    []byte
	payload []byte
	left    int
}

func (c *tapped) Read(buffer []byte) (int, error) {
	n, err := c.Conn.Read(buffer)
	c.tap.count(n)
	c.follow(buffer[:n])
	return n, err
}

func (c *tapped) follow(data []byte) {
	for len(data) > 0 {
		if len(c.head) < 9 {
			take := min(9-len(c.head), len(data))
			c.head, data = append(c.head, data[:take]...), data[take:]
			if len(c.head) < 9 {
				return
			}
			c.left = int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
		}
		take := min(c.left, len(data))
		if kind := c.head[3]; kind == framePing || kind == frameGoaway {
			c.payload = append(c.payload, data[:take]...)
		}
		c.left, data = c.left-take, data[take:]
		if c.left == 0 {
			c.tap.frame(c.head[3], c.head[4], c.payload)
			c.head, c.payload = c.head[:0], c.payload[:0]
		}
	}
}
