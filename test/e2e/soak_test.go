package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What test/soak tells the tests that it runs. Without it they do a few trials each.
const (
	soakVariable   = "ROOST_SOAK"        // a folder, for results and what failed installations leave
	scaleVariable  = "ROOST_SOAK_SCALE"  // of the numbers of trials; 1 is the issue's
	budgetVariable = "ROOST_SOAK_BUDGET" // seconds for each scenario and runtime
	seedVariable   = "ROOST_SOAK_SEED"   // of everything random, to replay a failure
)

// soaking says whether this is the full run.
func soaking() bool { return os.Getenv(soakVariable) != "" }

// enoughFailures end a scenario: what they have in common is found in the first.
const enoughFailures = 3

// scenario counts trials, and hands them random numbers that a seed repeats.
type scenario struct {
	t        *testing.T
	rand     *rand.Rand
	deadline time.Time

	mu  sync.Mutex
	out tally
}

// tally is a scenario's result; test/soak reads it.
type tally struct {
	Scenario string  `json:"scenario"`
	Runtime  string  `json:"runtime"`
	Wanted   int     `json:"wanted"`
	N        int     `json:"n"`
	Failures int     `json:"failures"`
	Seed     uint64  `json:"seed"`
	Seconds  float64 `json:"seconds"`
	// Figures that it measured, by name.
	Figures map[string]string `json:"figures,omitempty"`
	Remains []string          `json:"remains,omitempty"`
}

// soak begins a scenario of so many trials: few in the fast run, full in the soak.
func soak(t *testing.T, name, runtime string, few, full int) *scenario {
	t.Helper()
	s := &scenario{t: t, out: tally{Scenario: name, Runtime: runtime, Wanted: few, Seed: seed(t), Figures: map[string]string{}}}
	if soaking() {
		s.out.Wanted = max(1, int(float64(full)*number(t, scaleVariable, 1)+0.5))
		s.deadline = time.Now().Add(time.Duration(number(t, budgetVariable, 3600) * float64(time.Second)))
	}
	s.rand = rand.New(rand.NewPCG(s.out.Seed, 0)) //nolint:gosec // not for secrets: to be repeated
	t.Logf("%s: %d trials, seed %d (%s=%d repeats it)", name, s.out.Wanted, s.out.Seed, seedVariable, s.out.Seed)
	began := time.Now()
	t.Cleanup(func() { s.report(time.Since(began)) })
	return s
}

func seed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv(seedVariable); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		return n
	}
	return rand.Uint64N(1_000_000)
}

func number(t *testing.T, variable string, otherwise float64) float64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	require.NoError(t, err)
	return n
}

// each runs the trials, one after the other, until all were run, time is up or enough failed.
func (s *scenario) each(trial func(t *testing.T, n int)) {
	for n := range s.out.Wanted {
		if s.over() || !s.trial(strconv.Itoa(n), func(t *testing.T) { trial(t, n) }) && s.out.Failures >= enoughFailures {
			return
		}
	}
}

// trial runs one and counts it.
func (s *scenario) trial(name string, f func(t *testing.T)) bool {
	passed := s.t.Run(name, f)
	s.count(1, !passed)
	return passed
}

// count adds trials that are no subtests of their own.
func (s *scenario) count(n int, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.N += n
	if failed {
		s.out.Failures++
	}
}

func (s *scenario) over() bool { return !s.deadline.IsZero() && time.Now().After(s.deadline) }

// figure keeps a number that was measured.
func (s *scenario) figure(name, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Figures[name] = fmt.Sprintf(format, args...)
	s.t.Logf("%s: %s", name, s.out.Figures[name])
}

func (s *scenario) report(took time.Duration) {
	s.out.Seconds = took.Seconds()
	if s.t.Failed() && s.out.Failures == 0 {
		s.out.Failures = 1 // it failed before or after its trials
	}
	s.t.Logf("%s: n %d of %d, %d failures, seed %d", s.out.Scenario, s.out.N, s.out.Wanted, s.out.Failures, s.out.Seed)
	if !soaking() {
		return
	}
	raw, err := json.Marshal(s.out)
	require.NoError(s.t, err)
	file, err := os.OpenFile(filepath.Join(os.Getenv(soakVariable), "results.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(s.t, err)
	defer file.Close()
	_, err = file.Write(append(raw, '\n'))
	require.NoError(s.t, err)
}

// keepRemains saves what a failed installation wrote, by hard links, before it is uninstalled.
func (r *roost) keepRemains() {
	if !soaking() {
		return
	}
	to := filepath.Join(os.Getenv(soakVariable), filepath.Base(r.data))
	out, err := exec.Command("cp", "-al", r.data, to).CombinedOutput()
	if err != nil {
		r.t.Logf("keep what is left of %s: %v: %s", r.data, err, out)
	}
	r.t.Logf("what is left of %s is in %s", r.data, to)
}
