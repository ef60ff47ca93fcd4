package image

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// beneath is a directory that no name leads out of: the kernel itself refuses "..", and every link
// on the way. The directory that was used last stays open: streams come sorted.
type beneath struct {
	fd       int
	last     int
	lastName string
}

func openBeneath(dir string) (*beneath, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(err, "open", dir)
	}
	return &beneath{fd: fd, last: -1}, nil
}

func (b *beneath) close() error {
	err := b.forget()
	return errors.Join(err, unix.Close(b.fd))
}

func (b *beneath) forget() error {
	if b.last < 0 {
		return nil
	}
	fd := b.last
	b.last = -1
	return unix.Close(fd)
}

// parent is the open directory of name and its last part. The directory is good until the next call.
func (b *beneath) parent(name string) (int, string, error) {
	dir, base := path.Split(name)
	if b.last >= 0 && b.lastName == dir {
		return b.last, base, nil
	}
	fd, base, err := b.open(name)
	if err != nil {
		return -1, "", err
	}
	if err := b.forget(); err != nil {
		return -1, "", errors.Join(err, unix.Close(fd))
	}
	b.last, b.lastName = fd, dir
	return fd, base, nil
}

// open is parent for a caller that closes the directory.
func (b *beneath) open(name string) (int, string, error) {
	dir, base := path.Split(name)
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(b.fd, path.Clean(dir), &how)
		switch {
		case err == nil:
			return fd, base, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // nobody renames here: a passing state
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
			return -1, "", refuse("its directory is none of the directories before it")
		default:
			return -1, "", err
		}
	}
}
