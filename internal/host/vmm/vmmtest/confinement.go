package vmmtest

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

func memPath(pid int) string { return fmt.Sprintf("/proc/%d/mem", pid) }

// testConfinement: the VMM has little, and the template's memory cannot be written by it.
func (s *suite) testConfinement(t *testing.T) {
	tpl := s.newTemplate(t, func(*guest) {})
	m := s.copyOf(t, tpl, diskMB)
	vm, _ := s.restore(t, tpl, m)
	pid := vm.Handle().PID
	checkStatus(t, pid, m.cfg)
	checkNamespaces(t, pid)
	checkFiles(t, pid, m)
	if s.caps.OwnMemory {
		checkOwnMemory(t, pid, m.cfg.Memory.Path, m.cfg.UID)
	} else {
		checkUnprivileged(t, tpl.machine.cfg.Memory.File, m.cfg.UID)
	}
	logMemory(t, pid)
}

func checkStatus(t testing.TB, pid int, cfg vmm.Config) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	status := string(raw)
	field := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `:[ \t]*(.*?)[ \t]*$`).FindStringSubmatch(status)
		require.NotNil(t, m, name)
		return m[1]
	}
	id := func(n int) string { return strings.TrimSuffix(strings.Repeat(fmt.Sprintf("%d\t", n), 4), "\t") }
	require.Equal(t, id(cfg.UID), field("Uid"))
	require.Equal(t, id(cfg.GID), field("Gid"))
	require.Empty(t, field("Groups"))
	require.Equal(t, "1", field("NoNewPrivs"))
	require.Equal(t, "2", field("Seccomp"))
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		require.Equal(t, strings.Repeat("0", 16), field(set), set)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	require.NoError(t, err)
	require.Regexp(t, `Max core file size\s+0\s`, string(limits))
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	require.NoError(t, err)
	require.Equal(t, rootOf(t, pid), cwd)
}

// rootOf is the root directory of a process: "/", or its jail.
func rootOf(t testing.TB, pid int) string {
	t.Helper()
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
	require.NoError(t, err)
	return root
}

func checkNamespaces(t testing.TB, pid int) {
	t.Helper()
	for _, ns := range []string{"net", "ipc"} {
		require.True(t, differs(t, pid, ns), ns)
	}
	sid, err := unix.Getsid(pid)
	require.NoError(t, err)
	require.Equal(t, pid, sid)
}

// differs tells whether a process has a namespace of that kind apart from the test's.
func differs(t testing.TB, pid int, kind string) bool {
	t.Helper()
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	require.NoError(t, err)
	own, err := os.Readlink("/proc/self/ns/" + kind)
	require.NoError(t, err)
	return own != its
}

// checkFiles: what lies in its directory is root's, but in a jail of the VMM's own what it made
// there is its own; nobody else's is anything. Of the drive only the top is open for writing.
func checkFiles(t testing.TB, pid int, m *machine) {
	t.Helper()
	entries, err := os.ReadDir(m.cfg.Dir)
	require.NoError(t, err)
	jailed := rootOf(t, pid) != "/" || differs(t, pid, "mnt")
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		if !jailed || !e.IsDir() {
			require.Zero(t, info.Mode().Perm()&0o077, e.Name())
			require.Zero(t, info.Sys().(*syscall.Stat_t).Uid, e.Name())
		}
	}
	sockets := socketsIn(t, m.cfg.Dir)
	require.NotEmpty(t, sockets)
	for path, info := range sockets {
		uid := info.Sys().(*syscall.Stat_t).Uid
		require.True(t, uid == 0 || jailed && int(uid) == m.cfg.UID, "%s is of uid %d", path, uid)
		if !jailed {
			require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), path)
		}
	}
	for i, n := range m.cfg.Drive {
		require.Equal(t, i == len(m.cfg.Drive)-1, writableFDs(t, pid, n.Path) > 0, n.Path)
	}
}

func socketsIn(t testing.TB, dir string) map[string]os.FileInfo {
	t.Helper()
	out := map[string]os.FileInfo{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeSocket != 0 {
			out[path], err = e.Info()
		}
		return err
	}))
	return out
}

// writableFDs counts the descriptors by which pid can write to path.
func writableFDs(t testing.TB, pid int, path string) int {
	t.Helper()
	return openFDs(t, pid, path, 0o200)
}

// openFDs counts the descriptors that pid has of path in any of the modes: 0o400 to read it,
// 0o200 to write to it.
func openFDs(t testing.TB, pid int, path string, modes os.FileMode) int {
	t.Helper()
	want, err := os.Stat(path)
	require.NoError(t, err)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		got, err := os.Stat(filepath.Join(dir, e.Name()))
		link, lerr := os.Lstat(filepath.Join(dir, e.Name()))
		if err == nil && lerr == nil && os.SameFile(want, got) && link.Mode().Perm()&modes != 0 {
			n++
		}
	}
	return n
}

// checkUnprivileged runs dd as the VM's uid on the memfd itself: QEMU 7.2 must be able to open
// it for writing, so what counts is that no write gets through.
func checkUnprivileged(t testing.TB, memfd *os.File, uid int) {
	t.Helper()
	before := hashOf(t, memfd)
	cmd := asUID(uid, "dd", "if=/dev/urandom", "of=/proc/self/fd/3", "bs=4096", "count=1", "conv=notrunc")
	cmd.ExtraFiles = []*os.File{memfd}
	out, err := cmd.CombinedOutput()
	require.Error(t, err, "the VM's uid wrote to the template: %s", out)
	require.Contains(t, string(out), "not permitted")
	_, err = unix.Mmap(int(memfd.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.ErrorIs(t, err, unix.EPERM, "it can be mapped for writing")
	require.Equal(t, before, hashOf(t, memfd))
}

// asUID is a command under a uid.
func asUID(uid int, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	return cmd
}

// logMemory logs what the VMM has for itself, for the record.
func logMemory(t testing.TB, pid int) {
	t.Helper()
	m := memoryOf(t, pid)
	t.Logf("memory of the VMM, MiB: anonymous %.1f, pss %.1f", m["Anonymous:"], m["Pss:"])
}

// testRefused: a bad config is refused, typed, without an effect.
func (s *suite) testRefused(t *testing.T) {
	changes := map[string]func(*vmm.Config){
		"no id":              func(c *vmm.Config) { c.ID = "" },
		"id with option":     func(c *vmm.Config) { c.ID = "a,b=c" },
		"no vcpus":           func(c *vmm.Config) { c.VCPUs = 0 },
		"many vcpus":         func(c *vmm.Config) { c.VCPUs = 10000 },
		"root":               func(c *vmm.Config) { c.UID = 0 },
		"no kernel":          func(c *vmm.Config) { c.Kernel = "/nonexistent" },
		"no initrd":          func(c *vmm.Config) { c.Initrd = "/nonexistent" },
		"two lines":          func(c *vmm.Config) { c.Cmdline = "a\nb" },
		"long command line":  func(c *vmm.Config) { c.Cmdline = strings.Repeat("a", 4096) },
		"no directory":       func(c *vmm.Config) { c.Dir = "/nonexistent" },
		"unknown format":     func(c *vmm.Config) { c.Drive[0].Format = "vmdk" },
		"read-only top":      func(c *vmm.Config) { c.Drive[0].ReadOnly = true },
		"missing disk":       func(c *vmm.Config) { c.Drive[0].Path = "/nonexistent" },
		"little memory":      func(c *vmm.Config) { c.MemoryMB = 0 },
		"bad mac":            func(c *vmm.Config) { c.MAC = "02:00:00:00:00:02,x=y" },
		"multicast mac":      func(c *vmm.Config) { c.MAC = "01:00:00:00:00:02" },
		"directory of all's": func(c *vmm.Config) { require.NoError(t, os.Chmod(c.Dir, 0o755)) },
		"writable lower node": func(c *vmm.Config) {
			c.Drive = []vmm.Node{c.Drive[0], {Path: c.Drive[0].Path, Format: "qcow2"}}
		},
	}
	s.refusedByKind(t, changes)
	for name, change := range changes {
		m := s.newMachine(t)
		change(&m.cfg)
		_, err := s.driver(t).Boot(t.Context(), m.cfg)
		require.Error(t, err, name)
		kind := fault.KindOf(err)
		require.True(t, kind == fault.Invalid || kind == fault.NotFound, "%s: %s: %v", name, kind, err)
		if _, serr := os.Stat(m.cfg.Dir); serr == nil {
			requireNoSockets(t, m.cfg.Dir)
		}
	}
}

// refusedByKind adds what only some drivers can be told.
func (s *suite) refusedByKind(t testing.TB, changes map[string]func(*vmm.Config)) {
	if s.caps.OwnMemory {
		changes["a memfd"] = func(c *vmm.Config) { c.Memory.File = newMemory(t, memoryMB) }
		changes["memory to boot with"] = func(c *vmm.Config) { c.Memory.Path = c.Drive[0].Path }
		changes["a pager to boot with"] = func(c *vmm.Config) { c.Memory.Pager = filepath.Join(c.Dir, "pager.sock") }
	} else {
		changes["no memory"] = func(c *vmm.Config) { c.Memory.File = nil }
		changes["memory too small"] = func(c *vmm.Config) { c.MemoryMB++ }
		changes["unsealed template"] = func(c *vmm.Config) { c.Memory.Shared = false }
	}
	if s.caps.OpensTap {
		changes["no such namespace"] = func(c *vmm.Config) { c.NetNS = "/nonexistent" }
		changes["a tap without a namespace"] = func(c *vmm.Config) { c.NetNS = "" }
	}
	if s.caps.BlockDrive {
		changes["a chain"] = func(c *vmm.Config) {
			c.Drive = append([]vmm.Node{newDisk(t)}, c.Drive...)
			c.Drive[0].ReadOnly = true
		}
	}
	if s.caps.ELFKernel {
		changes["a bzImage"] = func(c *vmm.Config) { c.Kernel = s.fixtures.Kernel }
	}
}

// inodeOf is a file's inode, as /proc says it.
func inodeOf(info os.FileInfo) string {
	return strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
}

func fileHash(t testing.TB, path string) [32]byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(raw)
}
