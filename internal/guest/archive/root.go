package archive

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// beneath: the kernel itself refuses a path that leads out, by "..", a symlink or a magic link.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// lookTries bounds the repeats of a look-up that a rename disturbed.
const lookTries = 100

// root is a folder that no name leads out of. os.Root would be that too, but it takes
// O_NOFOLLOW|O_DIRECTORY to stop at a symlink, and gVisor's kernel follows the link.
type root struct{ fd int }

func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &root{fd}, nil
}

func (r *root) close() { _ = unix.Close(r.fd) }

// look opens a path for what O_PATH allows; links are followed as long as they stay within.
func (r *root) look(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: beneath}
	for try := 1; ; try++ {
		fd, err := unix.Openat2(r.fd, name, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EXDEV):
			return -1, fault.New(fault.Invalid, "", "", "the name leads out of the folder through a symlink")
		case !errors.Is(err, unix.EINTR) && (!errors.Is(err, unix.EAGAIN) || try == lookTries):
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// in runs do on the folder of name and its last part, which do must not follow.
func (r *root) in(op, name string, do func(dir int, base string) error) error {
	dir, err := r.look(path.Dir(name), unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	if err := do(dir, path.Base(name)); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// isDir follows links; found is false when there is nothing.
func (r *root) isDir(name string) (dir, found bool, err error) {
	fd, err := r.look(name, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, true, err
}

// kind is the S_IFMT of name itself, 0 when there is nothing.
func (r *root) kind(name string) (kind uint32, err error) {
	var st unix.Stat_t
	err = r.in("stat", name, func(dir int, base string) error {
		return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return st.Mode & unix.S_IFMT, err
}

func (r *root) mkdir(name string) error {
	return r.in("make folder", name, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o755) })
}

func (r *root) create(name string) (f *os.File, err error) {
	err = r.in("create", name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err == nil {
			f = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	return f, err
}

func (r *root) symlink(target, name string) error {
	return r.in("symlink", name, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

func (r *root) link(target, name string) error {
	return r.in("link", target, func(from int, old string) error {
		return r.in("link", name, func(to int, base string) error { return unix.Linkat(from, old, to, base, 0) })
	})
}

func (r *root) remove(name string) error {
	return r.in("remove", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
}

func (r *root) own(name string, uid, gid uint32) error {
	return r.in("chown", name, func(dir int, base string) error {
		return unix.Fchownat(dir, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	})
}

// chmodDir opens the folder first: a mode is changed through links.
func (r *root) chmodDir(name string, mode fs.FileMode) error {
	return r.in("chmod", name, func(dir int, base string) error {
		how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
		fd, err := unix.Openat2(dir, base, &how)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Fchmod(fd, uint32(mode.Perm()))
	})
}

func (r *root) touch(name string, at time.Time) error {
	return r.in("set times of", name, func(dir int, base string) error {
		spec := unix.NsecToTimespec(at.UnixNano())
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW)
	})
}
