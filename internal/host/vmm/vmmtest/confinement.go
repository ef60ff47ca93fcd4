package vmmtest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	checkUnprivileged(t, tpl.machine.cfg.Memory.File, m.cfg.UID)
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
	require.Equal(t, "/", cwd)
}

func checkNamespaces(t testing.TB, pid int) {
	t.Helper()
	for _, ns := range []string{"net", "ipc"} {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		require.NoError(t, err)
		own, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		require.NotEqual(t, own, its, ns)
	}
	sid, err := unix.Getsid(pid)
	require.NoError(t, err)
	require.Equal(t, pid, sid)
}

// checkFiles: sockets are root's, and of the drive only the top is open for writing.
func checkFiles(t testing.TB, pid int, m *machine) {
	t.Helper()
	entries, err := os.ReadDir(m.cfg.Dir)
	require.NoError(t, err)
	sockets := 0
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, e.Name())
		require.Zero(t, info.Sys().(*syscall.Stat_t).Uid, e.Name())
		if e.Type()&os.ModeSocket != 0 {
			require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), e.Name())
			sockets++
		}
	}
	require.Positive(t, sockets)
	for i, n := range m.cfg.Drive {
		require.Equal(t, i == len(m.cfg.Drive)-1, writableFDs(t, pid, n.Path) > 0, n.Path)
	}
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
	cmd := exec.Command("dd", "if=/dev/urandom", "of=/proc/self/fd/3", "bs=4096", "count=1", "conv=notrunc")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{memfd}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.CombinedOutput()
	require.Error(t, err, "the VM's uid wrote to the template: %s", out)
	require.Contains(t, string(out), "not permitted")
	_, err = unix.Mmap(int(memfd.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.ErrorIs(t, err, unix.EPERM, "it can be mapped for writing")
	require.Equal(t, before, hashOf(t, memfd))
}

// logMemory logs what the VMM has for itself, for the record.
func logMemory(t testing.TB, pid int) {
	t.Helper()
	m := memoryOf(t, pid)
	t.Logf("memory of the VMM, MiB: anonymous %.1f, pss %.1f", m["Anonymous:"], m["Pss:"])
}

// testRefused: a bad config is refused, typed, without an effect.
func (s *suite) testRefused(t *testing.T) {
	for name, change := range map[string]func(*vmm.Config){
		"no id":              func(c *vmm.Config) { c.ID = "" },
		"id with option":     func(c *vmm.Config) { c.ID = "a,b=c" },
		"no vcpus":           func(c *vmm.Config) { c.VCPUs = 0 },
		"many vcpus":         func(c *vmm.Config) { c.VCPUs = 10000 },
		"no memory":          func(c *vmm.Config) { c.Memory.File = nil },
		"memory too small":   func(c *vmm.Config) { c.MemoryMB++ },
		"unsealed template":  func(c *vmm.Config) { c.Memory.Shared = false },
		"root":               func(c *vmm.Config) { c.UID = 0 },
		"no kernel":          func(c *vmm.Config) { c.Kernel = "/nonexistent" },
		"no initrd":          func(c *vmm.Config) { c.Initrd = "/nonexistent" },
		"two lines":          func(c *vmm.Config) { c.Cmdline = "a\nb" },
		"long command line":  func(c *vmm.Config) { c.Cmdline = strings.Repeat("a", 4096) },
		"no directory":       func(c *vmm.Config) { c.Dir = "/nonexistent" },
		"unknown format":     func(c *vmm.Config) { c.Drive[0].Format = "vmdk" },
		"read-only top":      func(c *vmm.Config) { c.Drive[0].ReadOnly = true },
		"missing disk":       func(c *vmm.Config) { c.Drive[0].Path = "/nonexistent" },
		"bad mac":            func(c *vmm.Config) { c.MAC = "02:00:00:00:00:02,x=y" },
		"multicast mac":      func(c *vmm.Config) { c.MAC = "01:00:00:00:00:02" },
		"directory of all's": func(c *vmm.Config) { require.NoError(t, os.Chmod(c.Dir, 0o755)) },
		"writable lower node": func(c *vmm.Config) {
			c.Drive = []vmm.Node{c.Drive[0], {Path: c.Drive[0].Path, Format: "qcow2"}}
		},
	} {
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

func fileHash(t testing.TB, path string) [32]byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(raw)
}
