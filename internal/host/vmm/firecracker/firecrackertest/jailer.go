package firecrackertest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Play is the jailer or Firecracker when the program was started by that name, and ends with it.
func Play() {
	name := filepath.Base(os.Args[0])
	if name != vmmName && name != jailerName {
		return
	}
	if slices.Contains(os.Args[1:], "--version") {
		raw, _ := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), versionFile))
		title := map[string]string{vmmName: "Firecracker", jailerName: "Jailer"}[name]
		_, _ = fmt.Fprintf(os.Stdout, "%s v%s\n\nand a line of its log\n", title, raw)
		os.Exit(0)
	}
	if name == vmmName {
		fail(153, errors.New("the stand-in is started by its jailer"))
	}
	j, err := parseJailer(os.Args[1:])
	if err == nil {
		err = j.enter()
	}
	if err != nil {
		fail(1, err)
	}
	fail(serve(j.rest, j.id, j.version))
}

func fail(code int, err error) {
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "Error:", err)
	}
	os.Exit(code)
}

type jailer struct {
	one     map[string]string
	cgroup  []string
	limits  map[string]uint64
	rest    []string
	id      string
	version string
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

func parseJailer(args []string) (*jailer, error) {
	j := &jailer{one: map[string]string{}, limits: map[string]uint64{}}
	for len(args) > 0 && args[0] != "--" {
		if len(args) < 2 {
			return nil, fmt.Errorf("the argument '%s' requires a value, but none was supplied", args[0])
		}
		if err := j.take(args[0], args[1]); err != nil {
			return nil, err
		}
		args = args[2:]
	}
	if len(args) > 0 {
		j.rest = args[1:]
	}
	for _, name := range []string{"--id", "--exec-file", "--uid", "--gid"} {
		if j.one[name] == "" {
			return nil, fmt.Errorf("argument '%s' required, but not found", name)
		}
	}
	if j.id = j.one["--id"]; !idPattern.MatchString(j.id) {
		return nil, fmt.Errorf("invalid instance ID: %s", j.id)
	}
	return j, nil
}

func (j *jailer) take(name, value string) error {
	switch name {
	case "--id", "--exec-file", "--uid", "--gid", "--chroot-base-dir", "--netns", "--cgroup-version", "--parent-cgroup":
		if j.one[name] != "" {
			return fmt.Errorf("the argument '%s' was provided more than once", name)
		}
		j.one[name] = value
	case "--cgroup":
		if strings.Count(value, "=") != 1 {
			return fmt.Errorf("invalid format for cgroups: %s", value)
		}
		j.cgroup = append(j.cgroup, value)
	case "--resource-limit":
		resource, number, _ := strings.Cut(value, "=")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || resource != "fsize" && resource != "no-file" {
			return fmt.Errorf("invalid format for resources limits: %s", value)
		}
		j.limits[resource] = n
	default:
		return fmt.Errorf("found argument '%s' which wasn't expected, or isn't valid in this context", name)
	}
	return nil
}

// enter does what the jailer does, but for the new root mount: it only changes its root.
func (j *jailer) enter() error {
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), versionFile))
	if err != nil {
		return err
	}
	j.version = string(raw)
	uid, uidErr := strconv.Atoi(j.one["--uid"])
	gid, gidErr := strconv.Atoi(j.one["--gid"])
	if err := errors.Join(uidErr, gidErr); err != nil {
		return err
	}
	root := filepath.Join(j.one["--chroot-base-dir"], filepath.Base(j.one["--exec-file"]), j.id, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, filepath.Base(j.one["--exec-file"])), nil, 0o755); err != nil {
		return err
	}
	if netns := j.one["--netns"]; netns != "" {
		if _, err := os.Stat(netns); err != nil {
			return err
		}
	}
	if err := errors.Join(j.limit(), j.group()); err != nil {
		return err
	}
	if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
		return err
	}
	if err := devices(uid, gid); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return err
	}
	// As after the exec that the real one does: its /proc is its own.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
}

func (j *jailer) limit() error {
	for name, n := range j.limits {
		resource := map[string]int{"fsize": unix.RLIMIT_FSIZE, "no-file": unix.RLIMIT_NOFILE}[name]
		if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	return nil
}

// group makes the cgroups and enters them.
func (j *jailer) group() error {
	for _, setting := range j.cgroup {
		file, value, _ := strings.Cut(setting, "=")
		controller, _, _ := strings.Cut(file, ".")
		mount, err := mountOf(j.one["--cgroup-version"], controller)
		if err != nil {
			return err
		}
		dir := filepath.Join(mount, j.one["--parent-cgroup"], j.id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func mountOf(version, controller string) (string, error) {
	raw, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if version == "2" && f[2] == "cgroup2" || version == "1" && f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), controller) {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("controller %s is unavailable", controller)
}

// devices are those of the jail; in one that was used before they exist, which is refused.
func devices(uid, gid int) error {
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, uid, gid)); err != nil {
			return err
		}
	}
	for path, dev := range map[string]uint64{"/dev/net/tun": unix.Mkdev(10, 200), "/dev/kvm": unix.Mkdev(10, 232)} {
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)); err != nil {
			return fmt.Errorf("failed to create %s via mknod inside the jail: %w", path, err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return os.WriteFile("/"+vmmName+".pid", []byte(strconv.Itoa(os.Getpid())), 0o644)
}
