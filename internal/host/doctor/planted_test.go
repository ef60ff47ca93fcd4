package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// plantEnv makes the test binary a doctor on a machine with something wrong: it plants that for
// itself alone, in namespaces of its own, and prints what all checks find.
const (
	plantEnv = "DOCTOR_TEST_PLANT"
	dataEnv  = "DOCTOR_TEST_DATA"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(plantEnv); name != "" {
		runPlanted(name)
		return
	}
	os.Exit(m.Run())
}

func runPlanted(name string) {
	s := System{Data: os.Getenv(dataEnv)}
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil && plants[name].plant != nil {
		err = plants[name].plant(&s)
	}
	if uid := plants[name].uid; err == nil && uid != 0 {
		err = unix.Setuid(int(uid)) // of all threads
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plant:", err)
		os.Exit(1)
	}
	found := Run(context.Background(), append(Host(s), Production(s)...))
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		os.Exit(1)
	}
}

// plant is one thing wrong with a machine, and what doctor has to say of it.
type plant struct {
	plant func(s *System) error
	// uid of the process; 0 is root.
	uid uint32
	// status, says and mends of the finding with this name.
	name        string
	status      Status
	says, mends string
}

func mounted(flags uintptr, options string) func(s *System) error {
	return func(s *System) error {
		if err := unix.Mount("tmpfs", s.Data, "tmpfs", flags, options); err != nil {
			return err
		}
		if flags&unix.MS_RDONLY != 0 {
			return nil
		}
		return os.Mkdir(filepath.Join(s.Data, "roost"), 0o700)
	}
}

// hidden takes a device away.
func hidden(path string) func(*System) error {
	return func(*System) error { return hide(path) }
}

func hide(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	// The directory again, as a tmpfs, with everything but the one: so it is really not there.
	keep, err := os.MkdirTemp("", "keep")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(keep, unix.MNT_DETACH); _ = os.Remove(keep) }()
	if err := unix.Mount(dir, keep, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(path) || e.Type()&os.ModeDevice == 0 {
			continue
		}
		to := filepath.Join(dir, e.Name())
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(keep, e.Name()), to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// without leaves a PATH in which one program is missing.
func without(program string) func(*System) error {
	return func(s *System) error {
		dir := s.Data
		for _, name := range []string{"mmdebstrap", "mke2fs", "mkfs.erofs"} {
			if name == program {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil { //nolint:gosec // a program
				return err
			}
		}
		return os.Setenv("PATH", dir)
	}
}

func sysctl(key, value string) func(s *System) error {
	return func(s *System) error {
		s.Serving = true
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	}
}

// forwardDrop is what Docker and ufw do.
func forwardDrop(*System) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	policy := nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &policy})
	return conn.Flush()
}

func fewFiles(*System) error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 512, Max: 1024})
}

var plants = map[string]plant{
	"nothing":       {},
	"not root":      {uid: 65534, name: "root", status: Fail, says: "running as uid 65534", mends: "as root"},
	"few files":     {plant: fewFiles, name: "production: open files", status: Warn, says: "at most 1024", mends: "LimitNOFILE"},
	"nodev":         {plant: mounted(unix.MS_NODEV, "size=16m"), name: "data directory", status: Warn, says: "nodev", mends: "remount,dev"},
	"noexec":        {plant: mounted(unix.MS_NOEXEC, "size=16m"), name: "data directory", status: Fail, says: "noexec", mends: "remount,exec"},
	"read-only":     {plant: mounted(unix.MS_RDONLY, ""), name: "data directory", status: Fail, says: "read-only", mends: "remount,rw"},
	"in memory":     {plant: mounted(0, "size=16m"), name: "data directory", status: Warn, says: "tmpfs", mends: "--data"},
	"small disk":    {plant: mounted(0, "size=16m"), name: "disk", status: Warn, says: "0.0 of 0.0 GiB free", mends: "free space"},
	"no kvm":        {plant: hidden("/dev/kvm"), name: "kvm", status: Warn, says: "no /dev/kvm", mends: " "},
	"no tun":        {plant: hidden("/dev/net/tun"), name: "tun", status: Warn, says: "no VMs", mends: "modprobe tun"},
	"no loop":       {plant: hidden("/dev/loop-control"), name: "loop", status: Warn, says: "no Firecracker", mends: "modprobe loop"},
	"no cgroups":    {plant: func(*System) error { return unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "") }, name: "cgroups", status: Warn, says: "none that can limit", mends: "mount cgroup v2"},
	"no mke2fs":     {plant: without("mke2fs"), name: "mke2fs", status: Fail, says: "not found in PATH", mends: "apt-get install e2fsprogs"},
	"no mmdebstrap": {plant: without("mmdebstrap"), name: "mmdebstrap", status: Fail, says: "not found in PATH", mends: "apt-get install mmdebstrap"},
	"no forwarding": {plant: sysctl("net/ipv4/ip_forward", "0"), name: "ip_forward", status: Fail, says: "no connections", mends: "sysctl -w net.ipv4.ip_forward=1"},
	"a firewall":    {plant: forwardDrop, name: "firewall", status: Warn, says: "chain FORWARD of table filter", mends: "Network on the host"},
	"kvm for root":  {plant: rootsKVM, name: "kvm", status: Warn, says: "/dev/kvm has mode 600", mends: "chgrp kvm /dev/kvm"},
}

// rootsKVM changes the mode of a node of its own, not the machine's.
func rootsKVM(s *System) error {
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return err
	}
	node := filepath.Join(s.Data, "kvm")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil { //nolint:gosec // a device number
		return err
	}
	return unix.Mount(node, "/dev/kvm", "", unix.MS_BIND, "")
}

// TestPlantedForReal runs doctor as a process of its own on a machine with one thing wrong.
func TestPlantedForReal(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts, and leaves root")
	}
	before := map[string]Finding{}
	for _, f := range planted(t, "nothing") {
		before[f.Name] = f
	}
	for name, p := range plants {
		if p.name == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := os.Stat("/dev/kvm"); err != nil && p.name == "kvm" {
				t.Skip("needs a /dev/kvm to take away")
			}
			named := false
			for _, f := range planted(t, name) {
				if f.Name != p.name {
					continue
				}
				named = true
				require.Equal(t, p.status, f.Status, "%+v", f)
				require.Contains(t, f.Detail, p.says)
				require.Contains(t, f.Hint, p.mends)
				if was := before[f.Name]; was.Status == p.status {
					t.Logf("this machine has it by itself: %s", was.Detail)
				}
			}
			require.True(t, named)
		})
	}
}

// planted runs the test binary as doctor, with namespaces of its own.
func planted(t *testing.T, name string) []Finding {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer func() { _ = self.Close() }()
	var out, errs bytes.Buffer
	// Another uid may not look where the test binary lies: it is reached by descriptor.
	cmd := &exec.Cmd{Path: "/proc/self/fd/3", Args: []string{"doctor"}, ExtraFiles: []*os.File{self}, Dir: "/", Stdout: &out, Stderr: &errs,
		Env: []string{plantEnv + "=" + name, dataEnv + "=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	require.NoError(t, cmd.Run(), &errs)
	var found []Finding
	require.NoError(t, json.Unmarshal(out.Bytes(), &found))
	return found
}
