// Command growinit is process 1 of the VM that the build test boots: it loads the modules of
// boot.json, mounts the root disk, grows it to the size of its device and says what it found.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Println("GROWINIT START")
	if err := run(); err != nil {
		fmt.Println("GROWINIT FAILED:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // QEMU's -no-reboot makes it the end
	select {}
}

func run() error {
	if err := errors.Join(
		unix.Mount("dev", "/dev", "devtmpfs", 0, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	); err != nil {
		return err
	}
	device, err := loadModules()
	if err != nil {
		return err
	}
	if err := waitFor(device); err != nil {
		return err
	}
	if err := unix.Mount(device, "/newroot", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	if err := grow(device); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/newroot", &st); err != nil {
		return err
	}
	_, rng := os.Stat("/dev/hwrng")
	fmt.Printf("GROWINIT size_gb=%d inodes=%d rng=%v\n", st.Blocks*uint64(st.Bsize)>>30, st.Files, rng == nil)
	return unix.Unmount("/newroot", 0)
}

func loadModules() (rootDevice string, err error) {
	data, err := os.ReadFile("/roost/boot.json")
	if err != nil {
		return "", err
	}
	var boot struct {
		RootDevice string `json:"root_device"`
		Modules    []string
	}
	if err := json.Unmarshal(data, &boot); err != nil {
		return "", err
	}
	for _, name := range boot.Modules {
		f, err := os.Open(filepath.Join("/roost/modules", name))
		if err != nil {
			return "", err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return "", fmt.Errorf("load %s: %w", name, err)
		}
	}
	return boot.RootDevice, nil
}

// waitFor polls: without udev nobody says when a device node has appeared.
func waitFor(path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear", path)
}

func grow(device string) error {
	dev, err := os.Open(device)
	if err != nil {
		return err
	}
	defer dev.Close()
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return errno
	}
	root, err := os.Open("/newroot")
	if err != nil {
		return err
	}
	defer root.Close()
	const resizeFS = 0x40086610 // EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64)
	blocks := size / 4096
	start := time.Now()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow to %d blocks: %w", blocks, errno)
	}
	fmt.Println("GROWINIT grew in", time.Since(start))
	return nil
}
