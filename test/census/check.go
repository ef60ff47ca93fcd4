package census

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// Grace is how long cleanups that the kernel or a process does by itself may take.
const Grace = 5 * time.Second

// pollEvery: the kernel offers no signal for "the namespace is gone".
const pollEvery = 50 * time.Millisecond

// Settle compares with before until nothing is left over or grace has passed, and returns
// what still is.
func Settle(s Scope, before Census, grace time.Duration) ([]Leak, error) {
	deadline := time.Now().Add(grace)
	for {
		after, err := Take(s)
		if err != nil {
			return nil, err
		}
		leaks := Diff(before, after)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks, nil
		}
		time.Sleep(pollEvery)
	}
}

// Check takes a census now and another when the test ends, and fails the test naming each leak.
// With Self in the scope the test must not run in parallel with others.
func Check(t testing.TB, s Scope) {
	t.Helper()
	before, err := Take(s)
	if err != nil {
		t.Fatalf("census before the test: %v", err)
	}
	t.Cleanup(func() {
		leaks, err := Settle(s, before, Grace)
		if err != nil {
			t.Errorf("census after the test: %v", err)
		}
		for _, l := range leaks {
			t.Errorf("left behind: %s", l)
		}
	})
}

// Main runs a package's tests between two censuses and returns the exit status.
func Main(m *testing.M, s Scope) int {
	before, err := Take(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "census before the tests:", err)
		return 1
	}
	code := m.Run()
	leaks, err := Settle(s, before, Grace)
	if err != nil {
		fmt.Fprintln(os.Stderr, "census after the tests:", err)
		return 1
	}
	for _, l := range leaks {
		fmt.Fprintln(os.Stderr, "left behind:", l)
		code = max(code, 1)
	}
	return code
}
