package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	// overheadMB is what a sandbox's cgroup may use beyond the memory that was asked for: the
	// sentry, the gofer and the stubs. See the package comment for figures.
	overheadMB = 48
	// maxTasks bounds the host's threads: each process inside has a stub of its own.
	maxTasks = 8192
)

// controllers that sandboxes are limited by.
var controllers = []string{"cpu", "memory", "pids"}

// Limit is one limit of sandboxes on this host.
type Limit struct {
	Name    string
	InForce bool
	// Why not; or by what (cgroup v1, v2).
	Why string
}

// cgroups is how sandboxes are limited here.
type cgroups struct {
	parent string
	// version 2 or 1; 0 is none.
	version int
	limits  []Limit
}

// findCgroups tries each controller: makes a cgroup, limits it, reads the limit back.
func findCgroups(parent string) cgroups {
	c := cgroups{parent: parent, version: 1}
	var fs unix.Statfs_t
	if unix.Statfs(cgroupMount, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		c.version = 2
	}
	found := false
	for _, name := range controllers {
		l := Limit{Name: name, InForce: true, Why: fmt.Sprintf("cgroup v%d", c.version)}
		if err := c.try(name); err != nil {
			l.InForce, l.Why = false, err.Error()
		}
		found = found || l.InForce
		c.limits = append(c.limits, l)
	}
	if !found {
		c.version = 0
	}
	return c
}

// none is a host where sandboxes are not limited.
func (c cgroups) none(why string) cgroups {
	out := cgroups{parent: c.parent}
	for _, name := range controllers {
		out.limits = append(out.limits, Limit{Name: name, Why: why})
	}
	return out
}

// try limits a cgroup of its own by one controller.
func (c cgroups) try(controller string) (err error) {
	if c.version == 2 {
		if err := c.enable(controller); err != nil {
			return err
		}
	}
	dir := filepath.Join(c.dir(controller), "probe-"+strconv.Itoa(os.Getpid()))
	if _, err := os.Stat(filepath.Dir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("no cgroup controller %s: %w", controller, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Its parent stays: another start may be about to make a sandbox's in it.
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	file, value := limitFile(c.version, controller)
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err == nil && strings.TrimSpace(string(raw)) != value {
		err = fmt.Errorf("%s is %q after %q was written", file, raw, value)
	}
	return err
}

// enable passes a controller down to the parent's children.
func (c cgroups) enable(controller string) error {
	if err := os.MkdirAll(c.dir(controller), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{cgroupMount, c.dir(controller)} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// limitFile is a file that holds a limit, and a value that it takes.
func limitFile(version int, controller string) (file, value string) {
	switch controller {
	case "cpu":
		if version == 2 {
			return "cpu.max", "100000 100000"
		}
		return "cpu.cfs_quota_us", "100000"
	case "memory":
		if version == 2 {
			return "memory.max", "536870912"
		}
		return "memory.limit_in_bytes", "536870912"
	default:
		return "pids.max", strconv.Itoa(maxTasks)
	}
}

// dir of the parent, for a controller.
func (c cgroups) dir(controller string) string {
	if c.version == 2 {
		return filepath.Join(cgroupMount, c.parent)
	}
	return filepath.Join(cgroupMount, controller, c.parent)
}

// inForce says whether a controller limits sandboxes.
func (c cgroups) inForce(controller string) bool {
	for _, l := range c.limits {
		if l.Name == controller {
			return l.InForce
		}
	}
	return false
}

// countsSwap says whether the kernel can bound swap too. Without a bound a sandbox at its limit goes
// on in the host's swap until that is full.
func (c cgroups) countsSwap() bool {
	file := "memory.memsw.limit_in_bytes"
	if c.version == 2 {
		file = "memory.swap.max"
	}
	_, err := os.Stat(filepath.Join(c.dir("memory"), file))
	return err == nil
}

// path of a leaf, as runsc is told it.
func (c cgroups) path(leaf string) string { return "/" + c.parent + "/" + leaf }

// resources of a sandbox.
func (c cgroups) resources(vcpus, memoryMB int) *specs.LinuxResources {
	res := &specs.LinuxResources{}
	if c.inForce("cpu") {
		quota, period := int64(vcpus)*cpuPeriod, uint64(cpuPeriod)
		res.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if c.inForce("memory") {
		limit := int64(memoryMB+overheadMB) << 20
		res.Memory = &specs.LinuxMemory{Limit: &limit}
		if c.countsSwap() {
			res.Memory.Swap = &limit // memory and swap together: none
		}
	}
	if c.inForce("pids") {
		limit := int64(maxTasks)
		res.Pids = &specs.LinuxPids{Limit: limit}
	}
	return res
}

// remove removes a leaf, whose processes have ended. The kernel may need a moment.
func (c cgroups) remove(ctx context.Context, leaf string) error {
	if leaf == "" {
		return nil
	}
	dirs, err := c.leaves(leaf)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeCgroup(ctx, dir); err != nil {
			return fault.Wrap(err, "remove", "cgroup "+dir)
		}
	}
	return nil
}

// leaves are a leaf's directories: one, or with v1 one in every hierarchy.
func (c cgroups) leaves(leaf string) ([]string, error) {
	one, err := filepath.Glob(filepath.Join(cgroupMount, c.parent, leaf))
	if err != nil {
		return nil, err
	}
	many, err := filepath.Glob(filepath.Join(cgroupMount, "*", c.parent, leaf))
	return append(one, many...), err
}

func removeCgroup(ctx context.Context, dir string) error {
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
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

// RemoveCgroups removes the cgroups that sandboxes' were made in, for a host that roost leaves.
// Leaves of sandboxes that died with their agent go with them; one that something runs in stays,
// and is an error.
func RemoveCgroups(parent string) error {
	c := cgroups{parent: parent}
	all, err := c.leaves("*")
	if err != nil {
		return err
	}
	parents, err := c.leaves("")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range append(all, parents...) {
		// Of what matches, files of the parent are not directories.
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, fault.Wrap(err, "remove", "cgroup "+dir))
		}
	}
	return errors.Join(errs...)
}

// memoryUsed is what a leaf's processes hold and the kernel cannot drop; ok is false where
// memory is not counted.
func (c cgroups) memoryUsed(leaf string) (used int64, ok bool) {
	keys := map[string]bool{"total_rss": true, "total_shmem": true}
	if c.version == 2 {
		keys = map[string]bool{"anon": true, "shmem": true}
	}
	stat, err := c.readKeys(leaf, "memory.stat")
	if err != nil {
		return 0, false
	}
	for key := range keys {
		used += stat[key]
	}
	return used, true
}

// oomKills counts the processes of a leaf that were killed since they had no memory.
func (c cgroups) oomKills(leaf string) int64 {
	file := "memory.oom_control"
	if c.version == 2 {
		file = "memory.events"
	}
	keys, err := c.readKeys(leaf, file)
	if err != nil {
		return 0
	}
	return keys["oom_kill"]
}

// readKeys reads a file of lines "key number".
func (c cgroups) readKeys(leaf, file string) (map[string]int64, error) {
	if leaf == "" || c.version == 0 {
		return nil, os.ErrNotExist
	}
	f, err := os.Open(filepath.Join(c.dir("memory"), leaf, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]int64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out, nil
}
