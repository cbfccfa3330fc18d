package main

import (
	"log"
	"syscall"
	"time"
	"unsafe"
)

// poller is epoll with waits of nanoseconds; those of Go's own are rounded to milliseconds. System calls here are raw:
// there is no other goroutine to give the thread to, and to take it back would cost more than the call.
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
	count, _, errno := syscall.RawSyscall6(epollPwait2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
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

func read(fd int, into []byte) (int, error) { return raw(syscall.SYS_READ, fd, into) }

func write(fd int, from []byte) (int, error) { return raw(syscall.SYS_WRITE, fd, from) }

func raw(call uintptr, fd int, bytes []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&bytes[0])), uintptr(len(bytes)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
