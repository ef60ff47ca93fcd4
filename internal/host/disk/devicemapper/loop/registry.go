package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

// tagLength is how much of a tag lo_file_name keeps besides its NUL and one spare byte.
const tagLength = 62

// Registry shares loop devices and counts their users in this process. It is safe for concurrent
// use.
type Registry struct {
	prefix   string
	directIO bool

	mu    sync.Mutex
	files map[key]*shared
}

// key is what users share: a file in one mode.
type key struct {
	identity
	readOnly bool
}

// shared is the state of one key. Who attaches, detaches or looks holds turn; interest counts
// users and those who wait for their turn, and keeps it in the registry.
type shared struct {
	turn     chan struct{}
	interest int // under Registry.mu

	users  int // this and below under turn, and Registry.mu for writing
	device *device
}

// NewRegistry makes a registry whose loops carry prefix ("roost-<id4>") and a colon in their tag.
// Those of an earlier process with the same prefix are its own.
func NewRegistry(prefix string) *Registry {
	return &Registry{prefix: prefix, files: map[key]*shared{}}
}

// DirectIO makes loops for writing that are attached from now on bypass the page cache. Call it
// before the registry is used.
func (r *Registry) DirectIO() { r.directIO = true }

// Ref is one user's hold on a loop device: it stays attached at least until Release.
type Ref struct {
	// Path is the node, "/dev/loop7"; Dev its number.
	Path     string
	Dev      uint64
	ReadOnly bool

	registry *Registry
	key      key
	shared   *shared
	once     sync.Once
	err      error
}

// Acquire attaches the file at path, or shares the loop that it has. For writing, a file that has
// such a user already is fault.FailedPrecondition, and so is one that somebody else's loop
// device writes to.
func (r *Registry) Acquire(ctx context.Context, path string, readOnly bool) (*Ref, error) {
	file, err := openFile(path, readOnly)
	if err != nil {
		return nil, failed(err, "attach", path)
	}
	defer file.Close()
	id, err := identify(file)
	if err != nil {
		return nil, failed(err, "attach", path)
	}
	ref, err := r.acquire(ctx, file, key{id, readOnly})
	return ref, failed(err, "attach", path)
}

func openFile(path string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	// Not to wait for the other end of a pipe somebody put there.
	file, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "attach", path, "it is not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (r *Registry) acquire(ctx context.Context, file *os.File, k key) (*Ref, error) {
	s := r.enter(k)
	ref, err := r.acquireIn(ctx, s, file, k)
	if err != nil {
		r.leave(k, s)
	}
	return ref, err
}

func (r *Registry) acquireIn(ctx context.Context, s *shared, file *os.File, k key) (*Ref, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.users > 0 && !k.readOnly {
		return nil, inUse("attach", file.Name(), "it is attached for writing already, as "+s.device.name, "detach that disk first")
	}
	if s.users == 0 {
		d, err := r.obtain(ctx, file, k)
		if err != nil {
			return nil, err
		}
		r.set(s, d, 0)
	}
	number, err := s.device.number()
	if err != nil {
		return nil, errors.Join(err, r.letGo(s))
	}
	r.set(s, s.device, s.users+1)
	return &Ref{
		Path: filepath.Join("/dev", s.device.name), Dev: number, ReadOnly: k.readOnly,
		registry: r, key: k, shared: s,
	}, nil
}

// obtain finds the file's loop or attaches one. The lock keeps other processes from doing the same
// meanwhile.
func (r *Registry) obtain(ctx context.Context, file *os.File, k key) (*device, error) {
	if err := lock(ctx, file); err != nil {
		return nil, err
	}
	// Closing would not do: the loop has this same open file from now on, lock included.
	defer unlock(file)
	d, err := r.find(k)
	if err != nil {
		return nil, err
	}
	if d == nil {
		d, err = attach(ctx, file, config{r.tag(file.Name()), k.readOnly, r.directIO && !k.readOnly})
		if err != nil {
			return nil, err
		}
	}
	if k.readOnly {
		return d, nil
	}
	owned, err := d.own(ctx)
	if err == nil && !owned {
		err = inUse("attach", file.Name(), "another process writes to it through "+d.name, "end that process")
	}
	if err == nil {
		err = fault.Wrap(d.growTo(file), "resize", d.name)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// find opens the loop of ours that stands for a file already, if there is one: a table holds it,
// or another process. Somebody else's loop is not taken up, and must not write to the file.
func (r *Registry) find(k key) (*device, error) {
	names, err := attached()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !mayBe(name, k.identity) {
			continue
		}
		d, err := open(name, k.readOnly)
		if err != nil {
			return nil, fault.Wrap(err, "look at", "/dev/"+name)
		}
		if d == nil {
			continue
		}
		if r.ours(d) && d.is(k.identity) && d.readOnly() == k.readOnly {
			return d, nil
		}
		foreign := !r.ours(d) && d.is(k.identity) && !d.readOnly() && !k.readOnly
		if err := d.Close(); err != nil {
			return nil, fault.Wrap(err, "look at", "/dev/"+name)
		}
		if foreign {
			return nil, inUse("attach", "/dev/"+name, "it writes to the file, and is not ours", "losetup -d /dev/"+name)
		}
	}
	return nil, nil //nolint:nilnil // there is none, which is no failure
}

// mayBe tells from sysfs alone whether a loop may have that file: opening a device waits while it
// is being closed, with all the writing back that this takes.
func mayBe(name string, id identity) bool {
	path, deleted := backing(name)
	if path == "" {
		return false
	}
	var st unix.Stat_t
	if deleted || unix.Stat(path, &st) != nil {
		return true // its name tells nothing
	}
	return st.Dev == id.dev && st.Ino == id.inode
}

func (r *Registry) tag(path string) string {
	tag := r.prefix + ":" + filepath.Base(path)
	return tag[:min(len(tag), tagLength)]
}

func (r *Registry) ours(d *device) bool { return strings.HasPrefix(d.tag(), r.prefix+":") }

// enter finds or makes the state of a key, and keeps it there until leave.
func (r *Registry) enter(k key) *shared {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.files[k]
	if s == nil {
		s = &shared{turn: make(chan struct{}, 1)}
		r.files[k] = s
	}
	s.interest++
	return s
}

func (r *Registry) leave(k key, s *shared) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.interest--; s.interest == 0 {
		delete(r.files, k)
	}
}

func (r *Registry) set(s *shared, d *device, users int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.device, s.users = d, users
}

// letGo closes the device that has no user. The next user waits for it: a file that is being
// written back must not get a second loop.
func (r *Registry) letGo(s *shared) error {
	if s.users > 0 {
		return nil
	}
	d := s.device
	r.set(s, nil, 0)
	return d.Close()
}

// Release ends this user's hold; the second time it does nothing. After the last one, the kernel
// detaches the file, unless a table has the device open.
func (ref *Ref) Release() error {
	ref.once.Do(func() {
		s := ref.shared
		s.turn <- struct{}{}
		ref.registry.set(s, s.device, s.users-1)
		err := ref.registry.letGo(s)
		<-s.turn
		ref.registry.leave(ref.key, s)
		ref.err = failed(err, "release", ref.Path)
	})
	return ref.err
}

// SetCapacity makes the loop as large as its file has become.
func (r *Registry) SetCapacity(ref *Ref) error {
	s := ref.shared
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.device == nil {
		return inUse("resize", ref.Path, "it was released", "")
	}
	err := failpoint.Hit("devicemapper.loop.capacity")
	if err == nil {
		err = unix.IoctlSetInt(int(s.device.Fd()), unix.LOOP_SET_CAPACITY, 0)
	}
	return failed(err, "resize", fmt.Sprintf("%s (%s)", ref.Path, s.device.tag()))
}
