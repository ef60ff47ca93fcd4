package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// smt lets two sandboxes share a core's caches and buffers.
func (s System) smt(context.Context) Finding {
	const name = "smt"
	active, err := s.read("sys/devices/system/cpu/smt/active")
	switch {
	case err != nil || active == "0": // a kernel without the file has no SMT
		return ok(name, "off, or none")
	default:
		return warn(name, "on: sandboxes share cores with one another", "boot with nosmt, or echo off >/sys/devices/system/cpu/smt/control, or schedule each sandbox's threads by themselves (core scheduling)")
	}
}

// ksm makes pages common, which tells by its timing what others hold.
func (s System) ksm(context.Context) Finding {
	const name = "ksm"
	run, err := s.number("sys/kernel/mm/ksm/run")
	if err != nil || run != 1 { // a kernel without the file has no KSM
		return ok(name, "off")
	}
	return warn(name, "on: pages of different sandboxes are merged, and timing tells them what others hold",
		"echo 2 >/sys/kernel/mm/ksm/run, and systemctl disable --now ksmtuned ksm")
}

// vulnerabilities are what the kernel says of this CPU.
func (s System) vulnerabilities(context.Context) Finding {
	const name = "cpu"
	dir := filepath.Join("/", s.Root, "sys/devices/system/cpu/vulnerabilities")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return warn(name, "the kernel does not say what the CPU is vulnerable to: "+err.Error(), "use Linux 4.15 or newer, with /sys mounted")
	}
	var open []string
	for _, e := range entries {
		says, err := s.read("sys/devices/system/cpu/vulnerabilities/" + e.Name())
		if err == nil && (strings.HasPrefix(says, "Vulnerable") || strings.Contains(says, "SMT vulnerable")) {
			open = append(open, e.Name())
		}
	}
	slices.Sort(open)
	detail := fmt.Sprintf("%d known weaknesses, all mitigated or not this CPU's", len(entries))
	if m := s.microcode(); m != "" {
		detail += "; microcode " + m
	}
	if len(open) == 0 {
		return ok(name, detail)
	}
	return warn(name, "vulnerable to "+strings.Join(open, ", ")+"; microcode "+s.microcode(),
		"apt-get install intel-microcode (or amd64-microcode; component non-free-firmware) and the newest kernel, boot without mitigations=off; in a VM, its host must do it")
}

func (s System) microcode() string {
	info, _ := s.read("proc/cpuinfo") // "" then
	for line := range strings.Lines(info) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "microcode" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
