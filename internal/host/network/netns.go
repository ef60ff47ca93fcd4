package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const threadNS = "/proc/thread-self/ns/net"

// namespace is an open network namespace.
type namespace struct {
	file *os.File
}

// openNamespace opens path, or the caller's own namespace when path is empty.
func openNamespace(path string) (*namespace, error) {
	if path == "" {
		// Another thread of this process may be inside a slot; ours is not.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		path = threadNS
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	err = control(f, func(fd int) error { return unix.Fstatfs(fd, &fs) })
	if err == nil && fs.Type != unix.NSFS_MAGIC {
		// A claim whose maker died before it mounted the namespace is a plain file.
		err = fmt.Errorf("%s: %w", path, errNotNamespace)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &namespace{file: f}, nil
}

var errNotNamespace = errors.New("not a network namespace")

func (n *namespace) close() error { return n.file.Close() }

// do runs f on a thread that is inside the namespace.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		err := control(n.file, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
		if err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// doNew runs f inside a new, empty namespace, which is mounted at path first.
func doNew(path string, f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount(threadNS, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace at %s: %w", path, err)
		}
		return f()
	})
}

// onThread runs f on a locked thread and takes the thread home after. A thread that cannot go
// home stays locked, and so ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = unix.Close(home)
		done <- err
	}()
	return <-done
}

// control lends out the descriptor of f, which a concurrent Close then waits for.
func control(f *os.File, use func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = use(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// writeSysctl sets a value in the namespace of the calling thread. The file of a feature that
// the kernel was built without is no error.
func writeSysctl(key, value string) error {
	err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// unmountNamespace removes a name under nsDir, mounted or not.
func unmountNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
