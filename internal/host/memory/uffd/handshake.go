package uffd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// soPeerPIDFD is SO_PEERPIDFD, since Linux 6.5.
const soPeerPIDFD = 77

// peer is who has connected: its userfaultfd, what it says of its memory, and a pidfd of it.
type peer struct {
	uffd, pidfd *os.File
	regions     []byte
}

func (p *peer) close() {
	for _, f := range []*os.File{p.uffd, p.pidfd} {
		if f != nil {
			_ = f.Close() // nothing is written to these
		}
	}
}

// accept waits for the one connection that there will be. stop being readable ends it.
func accept(listener *os.File, stop int) (*peer, error) {
	if err := await(int(listener.Fd()), stop); err != nil {
		return nil, err
	}
	conn, _, err := unix.Accept4(int(listener.Fd()), unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, fault.Wrap(err, "accept", "VMM")
	}
	defer func() { _ = unix.Close(conn) }() // nobody says more on it
	p := &peer{}
	if err := p.read(conn, stop); err != nil {
		p.close()
		return nil, fault.Wrap(err, "receive memory of", "VMM")
	}
	return p, nil
}

var errStopped = fault.New(fault.Canceled, "", "", "stopped")

func await(fd, stop int) error {
	p := newPoller(fd, stop)
	err := p.wait()
	if err == nil && p.ready(1) {
		err = errStopped
	}
	return err
}

// read takes the list of regions and the descriptor, in as many pieces as they come.
func (p *peer) read(conn, stop int) (err error) {
	if p.pidfd, err = peerPIDFD(conn); err != nil {
		return err
	}
	buf := make([]byte, maxHandshake)
	for got := 0; ; {
		if err := await(conn, stop); err != nil {
			return err
		}
		n, err := p.receive(conn, buf[got:])
		if err != nil {
			return err
		}
		got += n
		p.regions = buf[:got]
		switch whole := json.Valid(p.regions); {
		case whole && p.uffd != nil:
			return nil
		case n == 0:
			return refused("it hung up after %d bytes (descriptor: %t)", got, p.uffd != nil)
		case got == len(buf):
			return refused("its list of regions is longer than %d bytes", len(buf))
		}
	}
}

func (p *peer) receive(conn int, buf []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, flags, _, err = unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return 0, err
	}
	files, err := descriptors(oob[:oobn])
	for _, f := range files {
		if p.uffd == nil {
			p.uffd = f
			continue
		}
		err = errors.Join(refused("more than one descriptor"), f.Close())
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = refused("more descriptors than fit")
	}
	return n, err
}

func descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue // of another type
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "userfaultfd"))
		}
	}
	return files, nil
}

// peerPIDFD holds the process at the other end. A kernel before 6.5 tells only its pid, which may
// be another's by now; then the worst is that this server outlives its VM until it is stopped.
func peerPIDFD(conn int) (*os.File, error) {
	fd, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, soPeerPIDFD)
	if err == nil {
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), "pidfd"), nil
	}
	cred, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("ask who connects: %w", err)
	}
	fd, err = unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", cred.Pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
