// Package debian gives tests Debian's cloud kernel, unpacked: boot/vmlinuz-* and lib/modules/*.
// It is downloaded once per machine into .cache/vmmtest, which test runs share.
package debian

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"

	"golang.org/x/sys/unix"
)

// kernelPackage depends on the kernel that is current.
const kernelPackage = "linux-image-cloud-amd64"

// Cache is the folder that Kernel unpacks below.
func Cache() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..", "..", ".cache", "vmmtest")
}

// Kernel is the folder of the unpacked kernel package. The caller may hold Lock or not.
func Kernel() (string, error) {
	root := filepath.Join(Cache(), "kernel")
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(Cache(), 0o755); err != nil {
		return "", err
	}
	unlock, err := Lock("kernel.lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	return root, unpack(root)
}

// Lock takes a lock below Cache that holds off other processes: packages are tested side by side.
func Lock(name string) (unlock func(), err error) {
	if err := os.MkdirAll(Cache(), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(Cache(), name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// One is the only file that a pattern matches.
func One(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s: %d files", pattern, len(found))
	}
	if err != nil {
		return "", err
	}
	return filepath.Clean(found[0]), nil
}

// unpack downloads and unpacks the package; the folder appears complete or not at all.
func unpack(root string) error {
	work, err := os.MkdirTemp(filepath.Dir(root), "unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	name, err := kernelName()
	if err != nil {
		return err
	}
	if err := run(work, "apt-get", "-q", "download", name); err != nil {
		return err
	}
	deb, err := One(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	if err := run(work, "dpkg-deb", "-x", deb, "root"); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, "root"), root)
}

var dependsLine = regexp.MustCompile(`Depends: (linux-image-\S+)`)

// kernelName asks apt, which on a fresh machine must fetch its lists first.
func kernelName() (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if err := run("/", "apt-get", "-q", "update"); err != nil {
				return "", err
			}
		}
		out, _ := exec.Command("apt-cache", "depends", kernelPackage).Output()
		if m := dependsLine.FindSubmatch(out); m != nil {
			return string(m[1]), nil
		}
	}
	return "", fmt.Errorf("apt knows no package %s", kernelPackage)
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}
