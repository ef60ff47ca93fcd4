package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	qmpSocket     = "qmp.sock"
	consoleSocket = "console.sock"
)

// listen makes a listening socket at path, root's and 0600, that QEMU inherits: so it can be
// connected to before QEMU has even started, and QEMU needs no access to the directory.
func listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(err, "listen", path)
	}
	f := os.NewFile(uintptr(fd), path)
	// The socket's own mode, set before bind, becomes the file's: at no moment is it wider.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = short(path, func(p string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: p}) })
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = f.Close()
		return nil, fault.Wrap(err, "listen", path)
	}
	return f, nil
}

func dial(path string) (*net.UnixConn, error) {
	var conn *net.UnixConn
	err := short(path, func(p string) (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: p, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unavailable, Op: "connect", Object: path, Err: err}
	}
	return conn, nil
}

// short calls f with a name for path that fits the 107 bytes of a socket address, however
// deep the directory lies.
func short(path string, f func(string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

func removeSockets(dir string) error {
	var errs []error
	for _, name := range []string{qmpSocket, consoleSocket} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
