//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func setUp() error {
	mounts := [][3]string{{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}}
	for _, m := range mounts {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0); err == nil {
		console = tty
	}
	if err := loadModules(); err != nil {
		return err
	}
	return bringUp()
}

// loadModules loads /modules in the order of the list beside them.
func loadModules() error {
	list, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open("/modules/" + name + ".ko")
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// usualAddr is eth0's where nobody could say another: a runtime takes no words for the command line.
const usualAddr = "192.0.2.2"

// bringUp gives eth0, if there is one, the address of the command line.
func bringUp() error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	addr := option("vmmtest.addr")
	if addr == "" {
		if !exists("/sys/class/net/eth0") {
			return nil // the modules are loaded: none comes
		}
		addr = usualAddr
	}
	deadline := time.Now().Add(5 * time.Second)
	for !exists("/sys/class/net/eth0") {
		if time.Now().After(deadline) {
			return fmt.Errorf("no eth0")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := setAddress("eth0", netip.MustParseAddr(addr)); err != nil {
		return err
	}
	return linkUp("eth0")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func option(key string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	for _, word := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(word, key+"="); ok {
			return v
		}
	}
	return ""
}

func linkUp(name string) error {
	return onInterface(name, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

func setAddress(name string, addr netip.Addr) error {
	set := func(ioctl uint, ip []byte) error {
		return onInterface(name, func(fd int, req *unix.Ifreq) error {
			if err := req.SetInet4Addr(ip); err != nil {
				return err
			}
			return unix.IoctlIfreq(fd, ioctl, req)
		})
	}
	if err := set(unix.SIOCSIFADDR, addr.AsSlice()); err != nil {
		return err
	}
	return set(unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0})
}

func onInterface(name string, f func(fd int, req *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := f(fd, req); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
