package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, path, kind string
	flags              uintptr
	data               string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// firstMounts makes the root a mount that has a parent, without copying it: nobody can
// pivot_root away from the kernel's first root, and the jailer and runsc do.
func firstMounts() error {
	const over = "/.root"
	if err := os.MkdirAll(over, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("/", over, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /: %w", err)
	}
	if err := os.Chdir(over); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return mountAll([]mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	})
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.path, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}

// prepare makes a system of it: file systems, names, the loopback interface.
func prepare(plan Plan) error {
	err := mountAll([]mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, ""},
	})
	if err != nil {
		return err
	}
	if err := deviceLinks(); err != nil {
		return err
	}
	if err := delegate(); err != nil {
		return err
	}
	if err := mountDrives(plan); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("lane")); err != nil {
		return fmt.Errorf("set the host's name: %w", err)
	}
	return loopbackUp()
}

func deviceLinks() error {
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, filepath.Join("/dev", link)); err != nil {
			return err
		}
	}
	return nil
}

// delegate enables every controller for children of the root.
func delegate() error {
	const root = "/sys/fs/cgroup"
	have, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(have)) {
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
			return fmt.Errorf("enable cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

func mountDrives(plan Plan) error {
	scratch, err := device(ScratchSerial)
	if err != nil {
		return err
	}
	if err := mountScratch(scratch, plan.Scratch); err != nil {
		return err
	}
	var list []mount
	for _, d := range plan.Drives {
		node, err := device(d.Serial)
		if err != nil {
			return err
		}
		kind, err := fileSystem(node)
		if err != nil {
			return err
		}
		list = append(list, mount{node, d.Path, kind, unix.MS_RDONLY, ""})
	}
	return mountAll(list)
}

// mountScratch keeps what lies there already: the working directory may, when it is below /tmp outside
// too.
func mountScratch(device, path string) error {
	const aside = "/.scratch"
	if err := mountAll([]mount{{device, aside, "ext4", unix.MS_NOSUID, "discard"}}); err != nil {
		return err
	}
	if err := os.CopyFS(aside, os.DirFS(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("move %s to its disk: %w", path, err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(aside, path, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to %s: %w", aside, path, err)
	}
	return errors.Join(os.Remove(aside), os.Chmod(path, 0o777|os.ModeSticky))
}

// device finds a disk by its serial number: names go by the order in which they are found.
func device(serial string) (string, error) {
	var found string
	err := await("a disk with the serial number "+serial, func() bool {
		files, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, file := range files {
			if have, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(have)) == serial {
				found = "/dev/" + filepath.Base(filepath.Dir(file))
				return true
			}
		}
		return false
	})
	return found, err
}

// fileSystem tells ext4 from EROFS by their magic numbers.
func fileSystem(node string) (string, error) {
	f, err := os.Open(node)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var super [128]byte
	if _, err := f.ReadAt(super[:], 1024); err != nil {
		return "", fmt.Errorf("read %s: %w", node, err)
	}
	switch {
	case super[0x38] == 0x53 && super[0x39] == 0xef:
		return "ext4", nil
	case super[0] == 0xe2 && super[1] == 0xe1 && super[2] == 0xf5 && super[3] == 0xe0:
		return "erofs", nil
	}
	return "", fmt.Errorf("%s: neither ext4 nor EROFS", node)
}

// await polls: sysfs tells nobody of changes. The limit is for a machine that is very busy.
func await(what string, ready func() bool) error {
	const limit = time.Minute
	for began := time.Now(); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > limit {
			return fmt.Errorf("%s did not appear in %s", what, limit)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}
