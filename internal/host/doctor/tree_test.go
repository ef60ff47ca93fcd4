package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree is a machine's proc and sys, as far as doctor reads them: every value is a good one.
func tree(t *testing.T, change map[string]string) System {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"proc/swaps":                              "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
		"proc/misc":                               "257 userfaultfd\n232 kvm\n",
		"proc/cpuinfo":                            "processor\t: 0\nmicrocode\t: 0x1000065\nflags\t\t: fpu vmx sse\n",
		"proc/sys/kernel/osrelease":               "6.1.0-31-amd64\n",
		"proc/sys/kernel/pid_max":                 "4194304\n",
		"proc/sys/kernel/threads-max":             "192730\n",
		"proc/sys/kernel/random/entropy_avail":    "256\n",
		"proc/sys/vm/overcommit_memory":           "0\n",
		"proc/sys/vm/unprivileged_userfaultfd":    "0\n",
		"proc/sys/net/ipv4/ip_forward":            "1\n",
		"proc/sys/net/netfilter/nf_conntrack_max": "262144\n",
		"sys/fs/cgroup/cgroup.controllers":        "cpuset cpu io memory hugetlb pids rdma misc\n",
		"sys/kernel/mm/ksm/run":                   "0\n",
		"sys/devices/system/cpu/smt/active":       "0\n",
		"sys/class/dmi/id/sys_vendor":             "Amazon EC2\n",
		"sys/class/dmi/id/product_name":           "m5.large\n",
		"sys/block/dm-0/dm/uuid":                  "CRYPT-PLAIN-swap\n",
		"sys/block/dm-1/dm/uuid":                  "LVM-abc\n",
		vulnerability("meltdown"):                 "Mitigation: PTI\n",
		vulnerability("mds"):                      "Not affected\n",
		vulnerability("spectre_v1"):               "Mitigation: usercopy/swapgs barriers and __user pointer sanitization\n",
	}
	for path, content := range change {
		files[path] = content
	}
	for path, content := range files {
		if content == gone {
			continue
		}
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return System{Root: root, Data: root, Clock: func() (Discipline, error) { return Discipline{Synchronized: true, MaxErrorMS: 12}, nil }}
}

const gone = "(no such file)"

func vulnerability(name string) string { return "sys/devices/system/cpu/vulnerabilities/" + name }

// fromTree are the checks that look at files alone, by the names of their findings.
func fromTree(s System) []Finding {
	return Run(context.Background(), []Check{
		s.kernel, s.swap, s.smt, s.ksm, s.vulnerabilities, s.entropy, s.time, s.pids, s.overcommit, s.conntrack,
		s.forwarding, s.cgroups, s.userfaultfd,
	})
}

// TestPlantedInTheTree plants one thing that is wrong at a time: doctor names that one, says how to
// mend it, and nothing else.
func TestPlantedInTheTree(t *testing.T) {
	t.Parallel()
	require.Empty(t, wrong(fromTree(tree(t, nil))), "a good machine")
	swaps := "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for _, c := range []struct {
		planted           string
		files             map[string]string
		serving, drifting bool
		name, says, mends string
	}{
		{planted: "swap on a partition", files: map[string]string{"proc/swaps": swaps + "/dev/sda2                               partition\t8388604\t\t0\t\t-2\n"},
			name: "swap", says: "on /dev/sda2, not encrypted", mends: "swapoff -a"},
		{planted: "swap on LVM", files: map[string]string{"proc/swaps": swaps + "/dev/dm-1                               partition\t8388604\t\t0\t\t-2\n"},
			name: "swap", says: "/dev/dm-1", mends: "crypttab"},
		{planted: "SMT", files: map[string]string{"sys/devices/system/cpu/smt/active": "1\n"}, name: "smt", says: "share cores", mends: "nosmt"},
		{planted: "KSM", files: map[string]string{"sys/kernel/mm/ksm/run": "1\n"}, name: "ksm", says: "merged", mends: "ksmtuned"},
		{planted: "mitigations off", files: map[string]string{vulnerability("meltdown"): "Vulnerable\n", vulnerability("mds"): "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable\n"},
			name: "cpu", says: "vulnerable to mds, meltdown; microcode 0x1000065", mends: "intel-microcode"},
		{planted: "old kernel", files: map[string]string{"proc/sys/kernel/osrelease": "4.19.0-27-amd64\n"}, name: "kernel", says: "older than 5.10", mends: "dist-upgrade"},
		{planted: "no entropy", files: map[string]string{"proc/sys/kernel/random/entropy_avail": "17\n"}, name: "entropy", says: "17 bits", mends: "virtio-rng"},
		{planted: "few pids", files: map[string]string{"proc/sys/kernel/pid_max": "32768\n"}, name: "processes", says: "pid_max 32768", mends: "kernel.pid_max=4194304"},
		{planted: "few threads", files: map[string]string{"proc/sys/kernel/threads-max": "15000\n"}, name: "processes", says: "threads-max 15000", mends: "kernel.threads-max"},
		{planted: "strict overcommit", files: map[string]string{"proc/sys/vm/overcommit_memory": "2\n"}, name: "overcommit", says: "strict", mends: "vm.overcommit_memory=0"},
		{planted: "small conntrack", files: map[string]string{"proc/sys/net/netfilter/nf_conntrack_max": "16384\n"}, name: "conntrack", says: "16384 connections", mends: "nf_conntrack_max=262144"},
		{planted: "forwarding taken away", files: map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}, serving: true, name: "ip_forward", says: "no connections", mends: "sysctl -w net.ipv4.ip_forward=1"},
		{planted: "no clock", drifting: true, name: "time", says: "not synchronized", mends: "chrony"},
		{planted: "memory not delegated", files: map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}, name: "cgroups", says: "version 2 without memory", mends: "Delegate=yes"},
		{planted: "cgroup v1 with cpu alone", files: map[string]string{"sys/fs/cgroup/cgroup.controllers": gone, "sys/fs/cgroup/cpu/cgroup.procs": ""}, name: "cgroups", says: "version 1 without memory, pids", mends: "unified_cgroup_hierarchy"},
		{planted: "an empty cgroup v2", files: map[string]string{"sys/fs/cgroup/cgroup.controllers": "\n"}, name: "cgroups", says: "none that can limit", mends: "mount cgroup v2"},
		{planted: "userfaultfd for root alone", files: map[string]string{"proc/misc": "232 kvm\n"}, name: "userfaultfd", says: "a jailed Firecracker may not", mends: "vm.unprivileged_userfaultfd=1"},
	} {
		t.Run(c.planted, func(t *testing.T) {
			t.Parallel()
			s := tree(t, c.files)
			s.Serving = c.serving
			if c.drifting {
				s.Clock = func() (Discipline, error) { return Discipline{}, nil }
			}
			requireNamed(t, fromTree(s), c.name, c.says, c.mends)
		})
	}
}

func wrong(found []Finding) []Finding {
	var out []Finding
	for _, f := range found {
		if f.Status != OK {
			out = append(out, f)
		}
	}
	return out
}

// requireNamed: one finding is not ok, and it is this one.
func requireNamed(t *testing.T, found []Finding, name, says, mends string) {
	t.Helper()
	bad := wrong(found)
	require.Len(t, bad, 1, "%+v", bad)
	require.Equal(t, name, bad[0].Name)
	require.Contains(t, bad[0].Detail, says)
	require.Contains(t, bad[0].Hint, mends)
	require.NotContains(t, bad[0].Detail+bad[0].Hint, "\n", "a line each")
}

// TestGoodInOtherWays: what is well on some machines though it is not what the tree has.
func TestGoodInOtherWays(t *testing.T) {
	t.Parallel()
	swaps := "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for name, files := range map[string]map[string]string{
		"encrypted swap and zram": {"proc/swaps": swaps + "/dev/dm-0 partition\t8388604\t0\t-2\n/dev/zram0 partition\t8388604\t0\t100\n"},
		"no SMT, no KSM":          {"sys/devices/system/cpu/smt/active": gone, "sys/kernel/mm/ksm/run": gone},
		"cgroup v1": {"sys/fs/cgroup/cgroup.controllers": gone, "sys/fs/cgroup/cpu/cgroup.procs": "", "sys/fs/cgroup/memory/cgroup.procs": "",
			"sys/fs/cgroup/pids/cgroup.procs": ""},
		"not forwarding yet":             {"proc/sys/net/ipv4/ip_forward": "0\n", "proc/sys/net/netfilter/nf_conntrack_max": gone},
		"userfaultfd for all":            {"proc/misc": "232 kvm\n", "proc/sys/vm/unprivileged_userfaultfd": "1\n"},
		"KSM that was unmerged":          {"sys/kernel/mm/ksm/run": "2\n"},
		"the oldest kernel that is well": {"proc/sys/kernel/osrelease": "5.10.0-34-cloud-amd64\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Empty(t, wrong(fromTree(tree(t, files))))
		})
	}
}

// TestNoKVM: what to do depends on where the machine is.
func TestNoKVM(t *testing.T) {
	t.Parallel()
	const plain = "flags\t\t: fpu sse hypervisor\n"
	at := func(vendor, product string) map[string]string {
		return map[string]string{"proc/cpuinfo": plain, "sys/class/dmi/id/sys_vendor": vendor + "\n", "sys/class/dmi/id/product_name": product + "\n"}
	}
	for _, c := range []struct {
		files       map[string]string
		says, mends string
	}{
		{nil, "the module is not loaded", "modprobe kvm_intel"},
		{map[string]string{"proc/cpuinfo": "flags\t\t: fpu svm sse\n"}, "the module is not loaded", "modprobe kvm_amd"},
		{at("Amazon EC2", "m5.large"), "(Amazon EC2)", ".metal"},
		{at("Google", "Google Compute Engine"), "(Google Compute Engine)", "enableNestedVirtualization"},
		{at("Microsoft Corporation", "Virtual Machine"), "(Azure or Hyper-V)", "Dv3 or Ev3"},
		{at("Hetzner", "vServer"), "(Hetzner Cloud)", "dedicated"},
		{at("OpenStack Foundation", "OpenStack Nova"), "OVH", "dedicated"},
		{at("QEMU", "Standard PC (Q35 + ICH9, 2009)"), "Proxmox", "--cpu host"},
		{at("VMware, Inc.", "VMware7,1"), "(VMware)", "vhv.enable"},
		{at("Somebody", "Else"), "shows no virtualization", "firmware"},
		{map[string]string{"proc/cpuinfo": plain, "sys/class/dmi/id/sys_vendor": gone}, "shows no virtualization", "nested virtualization"},
	} {
		detail, hint := tree(t, c.files).whyNoKVM(os.ErrNotExist)
		require.Contains(t, detail, c.says)
		require.Contains(t, hint, c.mends, c.says)
	}
	detail, hint := tree(t, nil).whyNoKVM(os.ErrPermission)
	require.True(t, strings.Contains(detail, "does not open") && strings.Contains(hint, "as root"))
}
