package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"syscall"
)

// kvmDevice is opened by QEMU itself: 7.2 takes no descriptor for it.
const kvmDevice = "/dev/kvm"

// hz is the tick rate of the guest kernel (Debian's); only its delay loop stands on it.
const hz = 250

// accelerator is how the guest's code runs.
type accelerator struct {
	name   string
	reason string
	// option and cpu are QEMU's arguments; identity names the CPU in captures.
	option, cpu, identity string
	// cmdline is what the guest's kernel must be told.
	cmdline string
	// groups are those that the process needs to open the accelerator's device.
	groups []int
}

// The driver's part of the kernel command line: console; a panic reboots at once, by triple
// fault (microvm has no keyboard controller), and -no-reboot makes that QEMU's end.
const baseCmdline = "console=ttyS0 reboot=t panic=-1"

// tcgCPU is everything that TCG emulates (python wheels need x86-64-v2, glibc gains by AVX2)
// less: 5-level paging (one more step in each page walk), and SVM (nothing nests here).
const tcgCPU = "max,la57=off,svm=off"

// tcg: the guest kernel cannot calibrate its clock while the host is busy and then hangs, so
// it is told the host's rate, which is the guest's too. tb-size bounds QEMU's cache of
// translated code, which is private memory of each VM. Mitigations guard against speculation,
// which translated code does not do; without them a restored guest answers a tenth sooner.
func tcg(khz int, reason string) accelerator {
	return accelerator{
		name:     AccelTCG,
		reason:   reason,
		option:   "tcg,thread=multi,tb-size=64",
		cpu:      tcgCPU,
		identity: "tcg:" + tcgCPU,
		cmdline:  fmt.Sprintf("%s mitigations=off lpj=%d tsc_early_khz=%d tsc=reliable", baseCmdline, khz*1000/hz, khz),
	}
}

func kvmAccelerator(reason string) accelerator {
	return accelerator{
		name:     AccelKVM,
		reason:   reason,
		option:   "kvm",
		cpu:      "host",
		identity: "kvm:host:" + hostCPU(),
		cmdline:  baseCmdline,
		groups:   kvmGroups(),
	}
}

var cpuFeatures = regexp.MustCompile(`(?m)^(vendor_id|cpu family|model|model name|stepping|flags)\s*:.*$`)

// hostCPU is a hash of what -cpu host shows to a guest.
func hostCPU() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	h := sha256.New()
	seen := map[string]bool{}
	for _, line := range cpuFeatures.FindAll(raw, -1) {
		if !seen[string(line)] {
			seen[string(line)] = true
			_, _ = h.Write(append(line, '\n'))
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// kvmAllowed tells whether a process that is not root can open /dev/kvm, by its group or at all.
func kvmAllowed() bool {
	info, err := os.Stat(kvmDevice)
	return err == nil && (info.Mode().Perm()&0o006 == 0o006 || info.Mode().Perm()&0o060 == 0o060 && len(kvmGroups()) > 0)
}

// kvmGroups is the group of /dev/kvm unless everybody may open it.
func kvmGroups() []int {
	info, err := os.Stat(kvmDevice)
	if err != nil || info.Mode().Perm()&0o006 == 0o006 {
		return nil
	}
	gid := int(info.Sys().(*syscall.Stat_t).Gid)
	if gid == 0 {
		return nil
	}
	return []int{gid}
}
