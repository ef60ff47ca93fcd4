// Package tsc finds the rate of the host's time stamp counter.
//
// A guest whose code is translated reads the host's counter but cannot calibrate it on a busy
// host, so it is told the rate; told a wrong one, its clock runs wrong. Every source here can
// lie (a hypervisor hides the CPUID leaf, "cpu MHz" is the current clock on real hardware, the
// kernel log is lost when its ring wraps), so each is checked against a measurement.
//
// The rate is part of what saved memory depends on and must be the same on every start: a rate
// that the kernel measured itself, anew on each host boot, is rounded to 0.1 MHz.
package tsc

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tolerance is how far a source may be from the measurement, which takes a few ms on a host
// that may be busy.
const tolerance = 0.005

// ErrUnusable says that the counter cannot serve as a clock.
var ErrUnusable = errors.New("the time stamp counter does not run at a constant rate")

// KHz is the rate in kHz; found once per process.
var KHz = sync.OnceValues(func() (int, error) {
	measured := measure()
	if measured < 100_000 {
		return 0, fmt.Errorf("%w: measured %d kHz", ErrUnusable, measured)
	}
	return choose(measured, sources()), nil
})

// choose takes the first source that agrees with the measurement, else the measurement.
func choose(measured int, from []source) int {
	for _, s := range from {
		khz, exact := s()
		if math.Abs(float64(khz-measured)) > tolerance*float64(measured) {
			continue
		}
		if !exact {
			khz = round(khz)
		}
		return khz
	}
	return round(measured)
}

func round(khz int) int { return (khz + 50) / 100 * 100 }

// measure compares the counter with the kernel's raw clock, and believes the attempt that was
// interrupted least.
func measure() int {
	const (
		attempts = 4
		span     = 5 * time.Millisecond
	)
	best, slack := 0, uint64(math.MaxUint64)
	for range attempts {
		t0, c0, s0 := sample()
		time.Sleep(span)
		t1, c1, s1 := sample()
		if s := s0 + s1; s < slack && t1 > t0 {
			slack = s
			best = int(float64(c1-c0) * 1e6 / float64(t1-t0))
		}
	}
	return best
}

// sample reads clock and counter as one; slack is how long that took.
func sample() (ns int64, cycles, slack uint64) {
	slack = math.MaxUint64 / 4
	for range 16 {
		var ts unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			return 0, 0, slack
		}
		after := rdtsc()
		if after-before < slack {
			ns, cycles, slack = ts.Nano(), before+(after-before)/2, after-before
		}
	}
	return ns, cycles, slack
}
