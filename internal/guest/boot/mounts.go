package boot

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// newRoot is where the disk is mounted before it becomes "/".
const newRoot = "/newroot"

// deviceTimeout bounds the wait for a device after its driver was loaded.
const deviceTimeout = 10 * time.Second

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

var (
	early = []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	}
	late = []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", CgroupRoot, "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	}
)

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fault.Wrap(err, "mount", m.target)
		}
		err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: the kernel mounted devtmpfs itself
			return fault.Wrap(err, "mount", m.kind+" at "+m.target)
		}
	}
	return nil
}

func mountRoot(device string) error {
	if err := waitFor(device); err != nil {
		return err
	}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return fault.Wrap(err, "make", newRoot)
	}
	// noinit_itable: lazy initialisation would dirty a fresh sandbox's disk in the background.
	err := unix.Mount(device, newRoot, "ext4", unix.MS_NOATIME, "noinit_itable")
	return fault.Wrap(err, "mount", device+" at "+newRoot)
}

// waitFor polls: a driver probes its device while it loads, so this rarely waits at all.
func waitFor(path string) error {
	for deadline := time.Now().Add(deviceTimeout); ; time.Sleep(2 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.Wrap(err, "wait for device", path)
		}
	}
}

// switchRoot makes the disk "/". The initramfs stays mounted beneath, empty and out of reach.
func switchRoot() error {
	for _, m := range early {
		target := filepath.Join(newRoot, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fault.Wrap(err, "make", target)
		}
		if err := unix.Mount(m.target, target, "", unix.MS_MOVE, ""); err != nil {
			return fault.Wrap(err, "move mount", m.target)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return fault.Wrap(err, "enter", newRoot)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fault.Wrap(err, "move root", newRoot)
	}
	if err := unix.Chroot("."); err != nil {
		return fault.Wrap(err, "change root to", newRoot)
	}
	return fault.Wrap(unix.Chdir("/"), "enter", "/")
}

// dropInitramfs gives its memory back; what runs from it (this binary) stays until it ends.
func dropInitramfs() {
	_ = os.RemoveAll(initramfs)
	_ = os.Remove("/init")
}

// linkDevices makes the names that programs expect and devtmpfs lacks, and a sticky /tmp.
func linkDevices() {
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		_ = os.Symlink(target, name)
	}
	for _, dir := range []string{"/tmp", "/run/lock"} {
		_ = os.Mkdir(dir, 0o777)
		_ = os.Chmod(dir, 0o777|os.ModeSticky)
	}
}
