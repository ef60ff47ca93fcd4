// Package trials counts what tests try many times. `make test` runs a few of each, `make soak` (package
// main in test/soak) all: it says so by the environment, reads the results, and prints one table.
//
//	s := trials.Begin(t, "killed at a random moment", "gvisor", 3, 200)
//	s.Each(func(t *testing.T, n int) { … s.Rand … })   // subtests: each fails by itself
package trials

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What test/soak tells the tests that it runs. Without it they do a few trials each.
const (
	FolderVariable = "ROOST_SOAK"        // a folder, for results and what failed installations leave
	ScaleVariable  = "ROOST_SOAK_SCALE"  // of the numbers of trials; 1 is the issue's
	BudgetVariable = "ROOST_SOAK_BUDGET" // seconds for each scenario and runtime
	SeedVariable   = "ROOST_SOAK_SEED"   // of everything random, to replay a failure
)

// StopFile in the folder: no other trial begins.
const StopFile = "stop"

// Soaking says whether this is the full run.
func Soaking() bool { return os.Getenv(FolderVariable) != "" }

// EnoughFailures end a scenario: what they have in common is found in the first.
const EnoughFailures = 3

// Scenario counts trials, and hands them random numbers that a seed repeats.
type Scenario struct {
	t        *testing.T
	Rand     *rand.Rand
	deadline time.Time

	mu  sync.Mutex
	out Tally
}

// Tally is a scenario's result; test/soak reads it.
type Tally struct {
	Scenario string  `json:"scenario"`
	Runtime  string  `json:"runtime"`
	Wanted   int     `json:"wanted"`
	N        int     `json:"n"`
	Failures int     `json:"failures"`
	Seed     uint64  `json:"seed"`
	Seconds  float64 `json:"seconds"`
	// Figures that it measured, by name.
	Figures map[string]string `json:"figures,omitempty"`
}

// Begin a scenario of so many trials: few in the fast run, full in the soak.
func Begin(t *testing.T, name, runtime string, few, full int) *Scenario {
	t.Helper()
	s := &Scenario{t: t, out: Tally{Scenario: name, Runtime: runtime, Wanted: few, Seed: seed(t), Figures: map[string]string{}}}
	if Soaking() {
		s.out.Wanted = max(1, int(float64(full)*number(t, ScaleVariable, 1)+0.5))
		s.deadline = time.Now().Add(time.Duration(number(t, BudgetVariable, 3600) * float64(time.Second)))
	}
	s.Rand = rand.New(rand.NewPCG(s.out.Seed, 0)) //nolint:gosec // not for secrets: to be repeated
	t.Logf("%s: %d trials, seed %d (%s=%d repeats it)", name, s.out.Wanted, s.out.Seed, SeedVariable, s.out.Seed)
	began := time.Now()
	t.Cleanup(func() { s.report(time.Since(began)) })
	return s
}

func seed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv(SeedVariable); text != "" {
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

// Each runs the trials, one after the other, until all were run, time is up or enough failed.
func (s *Scenario) Each(trial func(t *testing.T, n int)) {
	for n := range s.out.Wanted {
		if s.over() || !s.Trial(strconv.Itoa(n), func(t *testing.T) { trial(t, n) }) && s.out.Failures >= EnoughFailures {
			return
		}
	}
}

// Trial runs one and counts it, unless go test's -run leaves it out.
func (s *Scenario) Trial(name string, f func(t *testing.T)) bool {
	ran := false
	passed := s.t.Run(name, func(t *testing.T) {
		ran = true
		f(t)
	})
	if ran {
		s.Count(1, !passed)
	}
	return passed
}

// Count adds trials that are no subtests of their own.
func (s *Scenario) Count(n int, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.N += n
	if failed {
		s.out.Failures++
	}
}

// More says whether another trial is wanted, for those who count by themselves.
func (s *Scenario) More() bool { return s.out.N < s.out.Wanted && !s.over() && !s.t.Failed() }

// Wanted is how many trials there shall be; N is how many there were, Failures how many failed.
func (s *Scenario) Wanted() int   { return s.out.Wanted }
func (s *Scenario) N() int        { return s.out.N }
func (s *Scenario) Failures() int { return s.out.Failures }

// Seed repeats the scenario's random numbers.
func (s *Scenario) Seed() uint64 { return s.out.Seed }

// Exactly so many trials there shall be, whatever the scale.
func (s *Scenario) Exactly(n int) *Scenario {
	s.out.Wanted = n
	return s
}

func (s *Scenario) over() bool {
	if !Soaking() {
		return false
	}
	_, err := os.Stat(filepath.Join(os.Getenv(FolderVariable), StopFile))
	return err == nil || time.Now().After(s.deadline)
}

// Figure keeps a number that was measured.
func (s *Scenario) Figure(name, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Figures[name] = fmt.Sprintf(format, args...)
	s.t.Logf("%s: %s", name, s.out.Figures[name])
}

func (s *Scenario) report(took time.Duration) {
	s.out.Seconds = took.Seconds()
	if s.t.Failed() && s.out.Failures == 0 {
		s.out.Failures = 1 // it failed before or after its trials
	}
	s.t.Logf("%s: n %d of %d, %d failures, seed %d", s.out.Scenario, s.out.N, s.out.Wanted, s.out.Failures, s.out.Seed)
	if !Soaking() {
		return
	}
	raw, err := json.Marshal(s.out)
	require.NoError(s.t, err)
	file, err := os.OpenFile(filepath.Join(os.Getenv(FolderVariable), "results.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(s.t, err)
	defer file.Close()
	_, err = file.Write(append(raw, '\n'))
	require.NoError(s.t, err)
}
