package loop

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Loop is a loop device of ours.
type Loop struct {
	Name string // "loop7"
	// Path is the file's present name, Deleted that it has none any more.
	Path    string
	Deleted bool
	// Dev and Inode are the file's.
	Dev, Inode uint64
	ReadOnly   bool
	// Users counts this process's.
	Users int
	// Holders are the devices that stand on it: "dm-3".
	Holders []string
}

// List lists the loops of this registry's prefix, whichever process attached them.
func (r *Registry) List() ([]Loop, error) {
	names, err := attached()
	if err != nil {
		return nil, failed(err, "list", sysBlock)
	}
	users := r.users()
	var list []Loop
	for _, name := range names {
		l, err := r.describe(name, users)
		if err != nil {
			return nil, failed(err, "list", name)
		}
		if l != nil {
			list = append(list, *l)
		}
	}
	return list, nil
}

// describe is nil for a loop that is not ours, or not any more.
func (r *Registry) describe(name string, users map[string]int) (*Loop, error) {
	path, deleted := backing(name)
	d, err := open(name, true)
	if d == nil || err != nil {
		return nil, err
	}
	if !r.ours(d) {
		return nil, d.Close()
	}
	l := Loop{
		Name: name, Path: path, Deleted: deleted, Dev: d.info.Device, Inode: d.info.Inode,
		ReadOnly: d.readOnly(), Users: users[name], Holders: holders(name),
	}
	return &l, d.Close()
}

// users maps the names of loops to this process's users of them.
func (r *Registry) users() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for _, s := range r.files {
		if s.device != nil {
			counts[s.device.name] = s.users
		}
	}
	return counts
}

// Detach makes sure that a loop of ours is gone, for a collector. One that has gone, or has another
// file by now that is not ours, is detached. While it is in use it stays:
// fault.FailedPrecondition, naming the users that are known.
func (r *Registry) Detach(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return failed(err, "detach", name)
	}
	l, err := r.describe(name, r.users())
	if err != nil {
		return failed(err, "detach", name)
	}
	if l == nil {
		return nil
	}
	if err := l.busy(); err != nil {
		return err
	}
	if err := r.clear(name); err != nil {
		return failed(err, "detach", name)
	}
	now, err := r.describe(name, nil)
	if err != nil || now == nil || now.Dev != l.Dev || now.Inode != l.Inode {
		return failed(err, "detach", name)
	}
	return inUse("detach", name, "a process has it open", "lsof "+filepath.Join("/dev", name))
}

func (l Loop) busy() error {
	if l.Users > 0 {
		return inUse("detach", l.Name, "this process uses it", "")
	}
	if len(l.Holders) > 0 {
		return inUse("detach", l.Name, strings.Join(l.Holders, ", ")+" stands on it", "remove that device first")
	}
	return nil
}

// clear closes the loop, which detaches it unless somebody has it open: LOOP_CLR_FD while others
// have only marks it for that, and ours are marked from the beginning.
func (r *Registry) clear(name string) error {
	d, err := open(name, true)
	if d == nil || err != nil {
		return err
	}
	if r.ours(d) {
		err = unix.IoctlSetInt(int(d.Fd()), unix.LOOP_CLR_FD, 0)
		if errors.Is(err, unix.ENXIO) {
			err = nil
		}
	}
	if err != nil {
		return errors.Join(fault.Wrap(err, "clear", name), d.Close())
	}
	return d.Close()
}
