package process

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// foreground asks the terminal which group Ctrl-C would reach.
func foreground(terminal *os.File) (group int, err error) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := conn.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return group, errors.Join(cerr, err)
}

// typed sends a signal as its key, which the terminal turns into a signal to the foreground
// group; false when it has no key for it now.
func (p *Process) typed(sig syscall.Signal) bool {
	if _, ended := p.Ended(); ended {
		return false
	}
	key, ok := signalKey(p.streams.terminal, sig)
	if !ok {
		return false
	}
	conn, err := p.streams.terminal.SyscallConn()
	if err != nil {
		return false
	}
	// Not through the input's queue: a program that reads nothing is interrupted all the same.
	n := 0
	cerr := conn.Control(func(fd uintptr) { n, err = unix.Write(int(fd), []byte{key}) })
	return cerr == nil && err == nil && n == 1
}

// signalKey is the key of a signal, if the terminal's settings give it one.
func signalKey(terminal *os.File, sig syscall.Signal) (key byte, ok bool) {
	place, has := map[syscall.Signal]int{syscall.SIGINT: unix.VINTR, syscall.SIGQUIT: unix.VQUIT}[sig]
	conn, err := terminal.SyscallConn()
	if err != nil || !has {
		return 0, false
	}
	_ = conn.Control(func(fd uintptr) {
		settings, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err == nil && settings.Lflag&unix.ISIG != 0 {
			key = settings.Cc[place]
		}
	})
	return key, key != 0
}
