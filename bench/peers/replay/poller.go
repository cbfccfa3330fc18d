package main

import (
	"log"
	"syscall"
	"time"
	"unsafe"
)

// poller is epoll with waits of nanoseconds; those of Go's own are rounded to milliseconds.
type poller struct {
	fd     int
	conns  map[int]*conn
	events []syscall.EpollEvent
	ready  []int
}

const (
	epollPwait2   = 441 // on every architecture
	timerslack    = 29  // PR_SET_TIMERSLACK
	slackNanosecs = 1
)

func newPoller() *poller {
	fd, err := syscall.EpollCreate1(0)
	check(err)
	syscall.RawSyscall(syscall.SYS_PRCTL, timerslack, slackNanosecs, 0)
	return &poller{fd: fd, conns: map[int]*conn{}, events: make([]syscall.EpollEvent, 1024)}
}

func (p *poller) add(c *conn) {
	p.conns[c.fd] = c
	check(syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_ADD, c.fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(c.fd)}))
}

// want also waits until the connection takes more.
func (p *poller) want(c *conn, write bool) {
	events := uint32(syscall.EPOLLIN)
	if write {
		events |= syscall.EPOLLOUT
	}
	check(syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_MOD, c.fd, &syscall.EpollEvent{Events: events, Fd: int32(c.fd)}))
}

func (p *poller) wait(wait time.Duration) []int {
	limit := syscall.NsecToTimespec(max(0, int64(wait)))
	count, _, errno := syscall.Syscall6(epollPwait2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(unsafe.Pointer(&limit)), 0, 0)
	p.ready = p.ready[:0]
	if errno == syscall.EINTR {
		return p.ready
	}
	if errno != 0 {
		log.Fatal("epoll_pwait2: ", errno)
	}
	for i := range int(count) {
		p.ready = append(p.ready, int(p.events[i].Fd))
	}
	return p.ready
}
