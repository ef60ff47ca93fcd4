package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

const (
	controlNode = "/dev/loop-control"
	loopMajor   = 7
	sysBlock    = "/sys/block"
	// blockSize is the sector size that a loop shows: what device-mapper counts in.
	blockSize = 512
	// attachTries bounds how often somebody else may be quicker to take the free loop.
	attachTries = 200
)

// identity is what a file is, whatever its name.
type identity struct{ dev, inode uint64 }

func identify(file *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return identity{}, err
	}
	return identity{st.Dev, st.Ino}, nil
}

// device is an open loop device. While it is open, it stays attached to the same file.
type device struct {
	*os.File
	name string // "loop7"
	info *unix.LoopInfo64
}

func (d *device) is(id identity) bool {
	return d.info.Device == id.dev && d.info.Inode == id.inode
}

func (d *device) readOnly() bool { return d.info.Flags&unix.LO_FLAGS_READ_ONLY != 0 }

func (d *device) tag() string {
	name, _, _ := bytes.Cut(d.info.File_name[:], []byte{0})
	return string(name)
}

func (d *device) number() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Rdev, nil
}

// growTo makes a loop that was found, and has the size that its file had once, as large as that. A
// table on a smaller one would run into its end.
func (d *device) growTo(file *os.File) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	size, err := d.Seek(0, io.SeekEnd)
	if err != nil || st.Size()/blockSize <= size/blockSize {
		return err
	}
	return unix.IoctlSetInt(int(d.Fd()), unix.LOOP_SET_CAPACITY, 0)
}

// attached are the names of the loops that have a file, whosever.
func attached() ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(sysBlock, "loop*", "loop"))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(dirs))
	for _, dir := range dirs {
		names = append(names, filepath.Base(filepath.Dir(dir)))
	}
	return names, nil
}

// backing is the path of the file that a loop has, and whether it was deleted; "" when the loop
// has none.
func backing(name string) (path string, deleted bool) {
	raw, err := os.ReadFile(filepath.Join(sysBlock, name, "loop/backing_file"))
	if err != nil {
		return "", false
	}
	path = strings.TrimSuffix(string(raw), "\n")
	if _, err := os.Lstat(path); err == nil {
		return path, false
	}
	return strings.CutSuffix(path, " (deleted)")
}

// holders are the devices that stand on a loop: "dm-3".
func holders(name string) []string {
	entries, err := os.ReadDir(filepath.Join(sysBlock, name, "holders"))
	if err != nil {
		return nil
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// open opens a loop that has a file; nil when it has none (any more).
func open(name string, readOnly bool) (*device, error) {
	file, err := openNode(name, readOnly)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		return nil, nil //nolint:nilnil // there is none, which is no failure
	case err != nil:
		return nil, err
	}
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	switch {
	case errors.Is(err, syscall.ENXIO):
		return nil, file.Close()
	case err != nil:
		return nil, errors.Join(err, file.Close())
	}
	return &device{file, name, info}, nil
}

// openNode opens a loop's node, by one of our own where /dev has none (no devtmpfs).
func openNode(name string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY // closing what was open for writing makes udev probe it
	}
	file, err := os.OpenFile(filepath.Join("/dev", name), mode, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	raw, err := os.ReadFile(filepath.Join(sysBlock, name, "dev"))
	if err != nil {
		return nil, err
	}
	_, minor, _ := strings.Cut(strings.TrimSpace(string(raw)), ":")
	number, err := strconv.ParseUint(minor, 10, 20)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/dev", "roost-loop-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	node := filepath.Join(dir, name)
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(number)))); err != nil {
		return nil, &os.PathError{Op: "mknod", Path: node, Err: err}
	}
	return os.OpenFile(node, mode, 0)
}

// config describes an attachment.
type config struct {
	tag      string
	readOnly bool
	directIO bool
}

// attach makes a free loop stand for file.
func attach(ctx context.Context, file *os.File, c config) (*device, error) {
	if err := failpoint.Hit("devicemapper.loop.attach"); err != nil {
		return nil, err
	}
	control, err := os.OpenFile(controlNode, os.O_RDWR, 0)
	if err != nil {
		return nil, noLoops(err)
	}
	defer control.Close()
	for try := range attachTries {
		index, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		// Others take the same index meanwhile, or udev looks at it: another try.
		d, err := configure(fmt.Sprintf("loop%d", index), file, c)
		if !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENXIO) {
			return d, err
		}
		if err := pause(ctx, time.Duration(try)*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, fault.New(fault.Unavailable, "attach", file.Name(), "others take every free loop device first")
}

func configure(name string, file *os.File, c config) (*device, error) {
	node, err := openNode(name, c.readOnly)
	if err != nil {
		return nil, err
	}
	cfg := unix.LoopConfig{Fd: uint32(file.Fd()), Size: blockSize}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if c.readOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if c.directIO {
		cfg.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], c.tag)
	if err := unix.IoctlLoopConfigure(int(node.Fd()), &cfg); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	info, err := unix.IoctlLoopGetStatus64(int(node.Fd()))
	if err != nil {
		return nil, errors.Join(err, node.Close()) // which detaches it
	}
	return &device{node, name, info}, nil
}

func noLoops(err error) error {
	return (&fault.Error{Kind: fault.FailedPrecondition, Op: "open", Object: controlNode, Err: plain(err)}).
		WithHint("modprobe loop")
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
