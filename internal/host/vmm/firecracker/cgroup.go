package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	// overheadMB is what a VM's cgroup may use beyond the guest's memory: the VMM, its page tables,
	// and pages of its disk that are being written.
	overheadMB = 96
	// maxTasks is a Firecracker's threads but for those of its vCPUs, with room.
	maxTasks  = 16
	cpuPeriod = 100_000
)

var controllers = []string{"cpu", "memory", "pids"}

// Limit is one limit of VMs on this host.
type Limit struct {
	Name    string
	InForce bool
	// Why not; or by what (cgroup v1, v2).
	Why string
}

// cgroups is how VMs are limited here.
type cgroups struct {
	parent string
	// version 2 or 1; 0 is none.
	version int
	// mounts of the controllers, where each has its hierarchy; with version 2 the same.
	mounts map[string]string
	limits []Limit
}

// findCgroups tries each controller: makes a cgroup, limits it, reads the limit back.
func findCgroups(parent string) cgroups {
	c := cgroups{parent: parent, mounts: map[string]string{}}
	if parent == "" {
		return c.none("no cgroups were asked for")
	}
	raw, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return c.none(err.Error())
	}
	c.version, c.mounts = parseMounts(string(raw), v2Has)
	if c.version == 0 {
		return c.none("no cgroup controllers are mounted")
	}
	for _, name := range controllers {
		l := Limit{Name: name, InForce: true, Why: fmt.Sprintf("cgroup v%d", c.version)}
		if err := c.try(name); err != nil {
			l.InForce, l.Why = false, err.Error()
		}
		c.limits = append(c.limits, l)
	}
	if !slices.ContainsFunc(c.limits, func(l Limit) bool { return l.InForce }) {
		c.version = 0
	}
	return c
}

func (c cgroups) none(why string) cgroups {
	c.version, c.limits = 0, nil
	for _, name := range controllers {
		c.limits = append(c.limits, Limit{Name: name, Why: why})
	}
	return c
}

// parseMounts prefers version 2, where it has the memory controller.
func parseMounts(mounts string, has func(mount, controller string) bool) (version int, at map[string]string) {
	at = map[string]string{}
	for line := range strings.Lines(mounts) {
		field := strings.Fields(line)
		if len(field) < 4 {
			continue
		}
		switch field[2] {
		case "cgroup2":
			if has(field[1], "memory") {
				return 2, map[string]string{"cpu": field[1], "memory": field[1], "pids": field[1]}
			}
		case "cgroup":
			for _, option := range strings.Split(field[3], ",") {
				if slices.Contains(controllers, option) {
					at[option], version = field[1], 1
				}
			}
		}
	}
	return version, at
}

func v2Has(mount, controller string) bool {
	raw, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(raw)), controller)
}

// try limits a cgroup of its own by one controller.
func (c cgroups) try(controller string) (err error) {
	if c.mounts[controller] == "" {
		return fmt.Errorf("no cgroup controller %s", controller)
	}
	if c.version == 2 {
		if err := c.enable(controller); err != nil {
			return err
		}
	}
	dir := filepath.Join(c.dir(controller), "probe-fc-"+strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Its parent stays: another start may be about to make a VM's in it.
	defer func() { err = errors.Join(err, removeCgroup(context.Background(), dir)) }()
	for _, l := range c.settings(controller, 1, 512) {
		if err := os.WriteFile(filepath.Join(dir, l.file), []byte(l.value), 0o644); err != nil {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(dir, l.file))
		if err == nil && strings.TrimSpace(string(raw)) != l.value {
			err = fmt.Errorf("%s is %q after %q was written", l.file, raw, l.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enable passes a controller down to the parent's children.
func (c cgroups) enable(controller string) error {
	if err := os.MkdirAll(c.dir(controller), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{c.mounts[controller], c.dir(controller)} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// dir of the parent, for a controller.
func (c cgroups) dir(controller string) string { return filepath.Join(c.mounts[controller], c.parent) }

// setting is one file of a cgroup.
type setting struct{ file, value string }

// settings of a VM, by one controller, in the order in which the kernel takes them.
func (c cgroups) settings(controller string, vcpus, memoryMB int) []setting {
	bytes := strconv.FormatInt(int64(memoryMB+overheadMB+memoryMB/64)<<20, 10)
	quota := strconv.Itoa(vcpus * cpuPeriod)
	v2 := c.version == 2
	switch {
	case controller == "cpu" && v2:
		return []setting{{"cpu.max", quota + " " + strconv.Itoa(cpuPeriod)}}
	case controller == "cpu":
		return []setting{{"cpu.cfs_period_us", strconv.Itoa(cpuPeriod)}, {"cpu.cfs_quota_us", quota}}
	case controller == "memory" && v2:
		return c.withSwap(setting{"memory.max", bytes}, setting{"memory.swap.max", "0"})
	case controller == "memory":
		return c.withSwap(setting{"memory.limit_in_bytes", bytes}, setting{"memory.memsw.limit_in_bytes", bytes})
	default:
		return []setting{{"pids.max", strconv.Itoa(vcpus + maxTasks)}}
	}
}

// withSwap bounds swap too, where the kernel counts it: else a VM at its limit would go on in the
// host's swap.
func (c cgroups) withSwap(memory, swap setting) []setting {
	if _, err := os.Stat(filepath.Join(c.dir("memory"), swap.file)); err != nil {
		return []setting{memory}
	}
	return []setting{memory, swap}
}

// args tell the jailer to make the cgroup. Without controllers it makes none.
func (c cgroups) args(vcpus, memoryMB int) []string {
	if c.version == 0 {
		return nil
	}
	args := []string{"--cgroup-version", strconv.Itoa(c.version), "--parent-cgroup", c.parent}
	for _, l := range c.limits {
		if !l.InForce {
			continue
		}
		for _, s := range c.settings(l.Name, vcpus, memoryMB) {
			args = append(args, "--cgroup", s.file+"="+s.value)
		}
	}
	return args
}

// dirs are a leaf's directories, in each hierarchy.
func (c cgroups) dirs(leaf string) ([]string, error) {
	seen := map[string]bool{}
	var out []string
	for _, mount := range c.mounts {
		found, err := filepath.Glob(filepath.Join(mount, c.parent, leaf))
		if err != nil {
			return nil, err
		}
		for _, dir := range found {
			if info, err := os.Stat(dir); err == nil && info.IsDir() && !seen[dir] {
				seen[dir], out = true, append(out, dir)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// remove removes a leaf, whose processes have ended. The kernel may need a moment.
func (c cgroups) remove(ctx context.Context, leaf string) error {
	if c.parent == "" {
		return nil
	}
	dirs, err := c.dirs(leaf)
	for _, dir := range dirs {
		err = errors.Join(err, fault.Wrap(removeCgroup(ctx, dir), "remove", "cgroup "+dir))
	}
	return err
}

func removeCgroup(ctx context.Context, dir string) error {
	const most = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// oomKilled tells whether a process of a leaf was killed since it had no memory.
func (c cgroups) oomKilled(leaf string) bool {
	file := "memory.oom_control"
	if c.version == 2 {
		file = "memory.events"
	}
	if c.version == 0 || c.mounts["memory"] == "" {
		return false
	}
	f, err := os.Open(filepath.Join(c.dir("memory"), leaf, file))
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if n, found := strings.CutPrefix(lines.Text(), "oom_kill "); found {
			return n != "0"
		}
	}
	return false
}

// leafPattern is what jailID makes.
var leafPattern = regexp.MustCompile(`^fc-([A-Za-z0-9][A-Za-z0-9-]*)-([1-9][0-9]*)$`)

var _ vmm.Grouper = (*Driver)(nil)

// Groups implements vmm.Grouper.
func (d *Driver) Groups(context.Context) ([]vmm.Group, error) {
	if d.cgroups.parent == "" {
		return nil, nil
	}
	dirs, err := d.cgroups.dirs("fc-*")
	seen := map[string]bool{}
	var out []vmm.Group
	for _, dir := range dirs {
		name := filepath.Base(dir)
		part := leafPattern.FindStringSubmatch(name)
		if part == nil || seen[name] {
			continue
		}
		uid, err := strconv.Atoi(part[2])
		if err != nil {
			continue
		}
		seen[name] = true
		out = append(out, vmm.Group{Name: name, ID: part[1], UID: uid})
	}
	return out, err
}

// RemoveGroup implements vmm.Grouper.
func (d *Driver) RemoveGroup(ctx context.Context, name string) error {
	if !leafPattern.MatchString(name) {
		return invalid("cgroup", name, "not one of firecracker's")
	}
	return d.cgroups.remove(ctx, name)
}

// RemoveCgroups removes the cgroup that VMs' were made in, for a host that roost leaves, and what is
// left of VMs that died with their agent. One that something runs in stays, and is an error.
func RemoveCgroups(parent string) error {
	raw, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return fault.Wrap(err, "remove", "cgroups")
	}
	c := cgroups{parent: parent}
	_, c.mounts = parseMounts(string(raw), v2Has)
	dirs, err := c.dirs("fc-*")
	for _, mount := range c.mounts {
		dirs = append(dirs, filepath.Join(mount, parent))
	}
	for _, dir := range dirs {
		if rerr := unix.Rmdir(dir); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
			err = errors.Join(err, fault.Wrap(rerr, "remove", "cgroup "+dir))
		}
	}
	return err
}
