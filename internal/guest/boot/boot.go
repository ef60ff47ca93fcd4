package boot

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/identity"
)

// CgroupRoot is where Prepare mounts cgroup v2.
const CgroupRoot = "/sys/fs/cgroup"

const initramfs = "/roost"

// Prepare boots. On an error, Die.
func Prepare() (Config, error) {
	if err := mountAll(early); err != nil {
		return Config{}, err
	}
	openConsole()
	settle()
	c, err := readConfig(filepath.Join(initramfs, "boot.json"))
	if err != nil {
		return c, err
	}
	if err := loadModules(filepath.Join(initramfs, "modules"), c.Modules); err != nil {
		return c, err
	}
	if err := mountRoot(c.RootDevice); err != nil {
		return c, err
	}
	dropInitramfs()
	if err := switchRoot(); err != nil {
		return c, err
	}
	if err := mountAll(late); err != nil {
		return c, err
	}
	linkDevices()
	if err := network(c); err != nil {
		return c, err
	}
	return c, names(c.Hostname, c.DNS)
}

// Inside does what is left of a boot where mounts and network are there before the first
// process (gVisor).
func Inside(hostname, dns string) error {
	ignoreSignals()
	environment()
	linkDevices()
	if err := attributes("/"); err != nil {
		Say("%v (going on without)", err)
	}
	return names(hostname, dns)
}

// settle makes PID 1 hard to kill by accident and its children ordinary.
func settle() {
	ignoreSignals()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	_ = os.WriteFile("/proc/sys/kernel/panic", []byte("-1"), 0) // reboot at once, not hang
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 65536, Max: 1 << 20})
	environment()
}

// ignoreSignals has a handler that does nothing, not SIG_IGN: children would inherit that.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT,
		syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
}

// environment is what init gives itself and its children.
func environment() {
	unix.Umask(0o022)
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// names gives the machine its host name ("roost" if empty) and its name server (none if empty),
// in the kernel and in /etc.
func names(hostname, dns string) error {
	if hostname == "" {
		hostname = "roost"
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fault.Wrap(err, "set host name", hostname)
	}
	if err := identity.WriteHostname("/", hostname); err != nil {
		return err
	}
	if dns == "" {
		return nil
	}
	return identity.WriteFile("/etc/resolv.conf", []byte("nameserver "+dns+"\n"), 0o644)
}
