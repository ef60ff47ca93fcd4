package tsc

import (
	"bufio"
	"bytes"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// source tells a rate in kHz (0: not known) and whether it is the same on every host boot.
type source func() (khz int, exact bool)

func sources() []source {
	return []source{fromCPUID, fromHypervisor, fromKernelLog, fromCPUInfo}
}

// fromCPUID reads leaf 0x15: crystal clock × ratio.
func fromCPUID() (int, bool) {
	if top, _, _, _ := cpuid(0, 0); top < 0x15 {
		return 0, false
	}
	den, num, crystal, _ := cpuid(0x15, 0)
	if den == 0 || num == 0 || crystal == 0 {
		return 0, false
	}
	return int(uint64(crystal) * uint64(num) / uint64(den) / 1000), true
}

// fromHypervisor reads the timing leaf that KVM and VMware offer to their guests.
func fromHypervisor() (int, bool) {
	const timing = 0x40000010
	if _, _, c, _ := cpuid(1, 0); c&(1<<31) == 0 {
		return 0, false
	}
	if top, _, _, _ := cpuid(0x40000000, 0); top < timing {
		return 0, false
	}
	khz, _, _, _ := cpuid(timing, 0)
	return int(khz), true
}

var (
	refined  = regexp.MustCompile(`tsc: Refined TSC clocksource calibration: (\d+\.\d+) MHz`)
	detected = regexp.MustCompile(`tsc: Detected (\d+\.\d+) MHz processor`)
)

// fromKernelLog takes the rate that the kernel refined, else the one that it detected; the
// latter is exact when the CPU tells it (tsc_known_freq), as no refinement follows then.
func fromKernelLog() (int, bool) {
	log := kernelLog()
	if m := refined.FindSubmatch(log); m != nil {
		return khz(m[1]), false
	}
	if m := detected.FindSubmatch(log); m != nil {
		return khz(m[1]), knownFrequency()
	}
	return 0, false
}

func fromCPUInfo() (int, bool) {
	m := cpuMHz.FindSubmatch(cpuInfo())
	if m == nil {
		return 0, false
	}
	return khz(m[1]), knownFrequency()
}

var cpuMHz = regexp.MustCompile(`(?m)^cpu MHz\s*:\s*(\d+\.\d+)$`)

func knownFrequency() bool { return bytes.Contains(cpuInfo(), []byte(" tsc_known_freq ")) }

// cpuInfo is the first processor's part of /proc/cpuinfo.
func cpuInfo() []byte {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	first, _, _ := bytes.Cut(raw, []byte("\n\n"))
	return first
}

// kernelLog reads what /dev/kmsg holds now.
func kernelLog() []byte {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var log bytes.Buffer
	w := bufio.NewWriter(&log)
	record := make([]byte, 8192) // one read is one record
	for {
		n, err := unix.Read(fd, record)
		if err == unix.EPIPE { // overwritten meanwhile: the next read goes on
			continue
		}
		if err != nil || n <= 0 {
			_ = w.Flush()
			return log.Bytes()
		}
		_, _ = w.Write(record[:n])
	}
}

func khz(mhz []byte) int {
	f, err := strconv.ParseFloat(string(mhz), 64)
	if err != nil {
		return 0
	}
	return int(f*1000 + 0.5)
}
