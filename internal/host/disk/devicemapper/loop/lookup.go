package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// At describes the loop of that number; nil when it is not one of ours.
func (r *Registry) At(dev uint64) (*Loop, error) {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // there is none, which is no failure
	}
	name := filepath.Base(link)
	if err != nil {
		return nil, failed(err, "look at", name)
	}
	l, err := r.describe(name, r.users())
	return l, failed(err, "look at", name)
}

// Of lists the loops of ours that stand for a file, whatever its name.
func (r *Registry) Of(file os.FileInfo) ([]Loop, error) {
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, nil
	}
	names, err := attached()
	if err != nil {
		return nil, failed(err, "list", sysBlock)
	}
	id := identity{st.Dev, st.Ino}
	users := r.users()
	var list []Loop
	for _, name := range names {
		if !mayBe(name, id) {
			continue
		}
		l, err := r.describe(name, users)
		if err != nil {
			return nil, failed(err, "look at", name)
		}
		if l != nil && l.Dev == id.dev && l.Inode == id.inode {
			list = append(list, *l)
		}
	}
	return list, nil
}
