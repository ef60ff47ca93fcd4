package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	controlNode = "/dev/" + unix.DM_DIR + "/" + unix.DM_CONTROL_NODE
	miscMajor   = 10
	// nodeDir holds nodes where /dev has none of its own (no devtmpfs there).
	nodeDir = "/run/roost/dm"
)

// openControl opens the control node, by one of our own where /dev has none.
func openControl() (*os.File, error) {
	file, err := os.OpenFile(controlNode, os.O_RDWR, 0)
	if err == nil {
		return file, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, failed(err, cmdVersion, "")
	}
	minor, err := controlMinor()
	if err != nil {
		return nil, err
	}
	return openPrivate(unix.Mkdev(miscMajor, minor))
}

// controlMinor finds device-mapper among the kernel's misc devices.
func controlMinor() (uint32, error) {
	raw, err := os.ReadFile("/proc/misc")
	if err != nil {
		return 0, fault.Wrap(err, "open", "device-mapper")
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "device-mapper" {
			minor, err := strconv.ParseUint(f[0], 10, 20)
			return uint32(minor), err
		}
	}
	return 0, fault.New(fault.FailedPrecondition, "open", "device-mapper", "this kernel has none").
		WithHint("modprobe -a dm_mod dm_snapshot dm_zero")
}

// openPrivate opens a character device by a node that is gone again when it returns. A folder on
// a file system mounted nodev cannot hold it.
func openPrivate(dev uint64) (*os.File, error) {
	var errs []error
	for _, parent := range []string{"/run", os.TempDir(), "/dev/shm", "/dev"} {
		file, err := openIn(parent, dev)
		if err == nil {
			return file, nil
		}
		errs = append(errs, err)
	}
	return nil, failed(errors.Join(errs...), cmdVersion, "")
}

func openIn(parent string, dev uint64) (*os.File, error) {
	dir, err := os.MkdirTemp(parent, "roost-dm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	node := filepath.Join(dir, "control")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(dev)); err != nil {
		return nil, &fs.PathError{Op: "mknod", Path: node, Err: err}
	}
	return os.OpenFile(node, os.O_RDWR, 0)
}

// Node is the path of a device's node, for its minor number. A device that was made has one at
// once: devtmpfs makes it in the kernel, before Load returns. Where /dev is not that, the node is
// made in a folder of Roost's own, and Remove removes it.
func (c *Control) Node(info Info) (string, error) {
	base := fmt.Sprintf("dm-%d", info.Minor)
	path := filepath.Join("/dev", base)
	if isNode(path, info.Dev) {
		return path, nil
	}
	path = filepath.Join(nodeDir, base)
	if isNode(path, info.Dev) {
		return path, nil
	}
	if err := makeNode(path, info.Dev); err != nil {
		return "", fault.Wrap(err, "make node of", "device "+info.Name)
	}
	return path, nil
}

func isNode(path string, dev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev
}

// ownNode returns what removes the node that Node made of a device, to be called when the device
// is gone.
func (c *Control) ownNode(name string) func() error {
	nothing := func() error { return nil }
	if _, err := os.Stat(nodeDir); err != nil {
		return nothing
	}
	info, err := c.Info(name)
	if err != nil {
		return nothing
	}
	path := filepath.Join(nodeDir, fmt.Sprintf("dm-%d", info.Minor))
	return func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(err, "remove node of", "device "+name)
		}
		return nil
	}
}

// makeNode puts a node in place at once: another of this name is of a device that is gone.
func makeNode(path string, dev uint64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	node := filepath.Join(tmp, "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(dev)); err != nil {
		return &fs.PathError{Op: "mknod", Path: node, Err: err}
	}
	return os.Rename(node, path)
}
