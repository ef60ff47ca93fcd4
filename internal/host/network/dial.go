package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dialTCP connects from inside a namespace. Only the socket is made there: a socket stays in
// its namespace, so the wait for the peer holds no thread.
func dialTCP(ctx context.Context, ns *namespace, to netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	family, addr := sockaddr(to)
	fd := -1
	err := ns.do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer func() { _ = f.Close() }() // FileConn has a copy
	if err := waitConnected(ctx, f); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func sockaddr(to netip.AddrPort) (int, unix.Sockaddr) {
	if a := to.Addr().Unmap(); a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// waitConnected returns when the connection stands, failed, or ctx ended.
func waitConnected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			failed = os.NewSyscallError("connect", err)
			return true
		}
		// No error and no peer: a wake-up before the answer.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(failed, err)
}
