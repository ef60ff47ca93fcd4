package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/roosthq/roost/test/trials"
)

// Packages whose tests are scenarios.
const (
	e2e     = "test/e2e"
	fakes   = "test/tree"
	microvm = "internal/host/runtime/microvm"
	gvisor  = "internal/host/runtime/gvisor"
)

// scenario is a test, or a table of them, with its share of the budget.
type scenario struct {
	name string
	pkg  string
	// test is go test's -run.
	test string
	// share of the budget; what is not used is nobody's.
	share float64
	// flips is the number of damages of package runtimetest, which passes or fails as one.
	flips int
}

var scenarios = []scenario{
	{name: "steps", pkg: e2e, test: "^TestKilledAt$", share: 5},
	{name: "failures", pkg: e2e, test: "^TestFailedAt$", share: 4},
	{name: "random", pkg: e2e, test: "^TestKilledAtRandom$", share: 7},
	{name: "adopted", pkg: e2e, test: "^TestAdopted$", share: 3},
	{name: "cycles", pkg: e2e, test: "^TestManyCycles$", share: 4},
	{name: "rewind", pkg: e2e, test: "^TestFailedStartIsUndone$", share: 5},
	{name: "damage", pkg: e2e, test: "^TestDamage$", share: 3},
	{name: "flips", pkg: microvm, test: "^TestContract$/^Flips$", share: 2, flips: 1000},
	{name: "flips", pkg: gvisor, test: "^TestContract$/^Flips$", share: 2, flips: 1000},
	{name: "full", pkg: e2e, test: "^TestDiskFull$", share: 3},
	{name: "forks", pkg: e2e, test: "^(TestFork|TestForkMany)$", share: 2},
	{name: "tree", pkg: e2e, test: "^TestTree$", share: 5},
	{name: "model", pkg: fakes, test: "^TestTree$", share: 1},
	{name: "orders", pkg: e2e, test: "^TestDeletedInAnyOrder$", share: 1},
	{name: "templates", pkg: e2e, test: "^TestTemplateFrom$", share: 2},
	{name: "deaths", pkg: e2e, test: "^(TestStopped|TestHostReboot)$", share: 2},
}

// chosen are the scenarios of this run.
func chosen(o options) []scenario {
	return slices.DeleteFunc(slices.Clone(scenarios), func(s scenario) bool { return !o.only.MatchString(s.name) })
}

// row of the table.
type row struct {
	trials.Tally
	// ended says what the tally does not know: a test that failed outside its trials.
	ended string
}

// run runs a scenario's test and returns what it counted.
func (s scenario) run(ctx context.Context, o options, built map[string]string) []row {
	fmt.Printf("== %s (%s)\n", s.name, s.pkg)
	results := filepath.Join(o.out, "results.jsonl")
	_ = os.Remove(results)
	began := time.Now()
	err := s.execute(ctx, o, built[s.pkg])
	rows := read(results)
	if n := s.scaled(o); s.flips > 0 && err == nil {
		rows = []row{{Tally: trials.Tally{Scenario: "flipped, cut or missing, in the runtime's contract", Runtime: filepath.Base(s.pkg), N: n, Wanted: n, Seconds: time.Since(began).Seconds(), Seed: o.seed}}}
	}
	if err != nil {
		rows = append(rows, row{Tally: trials.Tally{Scenario: s.name + ", as a whole", Failures: 1, Seconds: time.Since(began).Seconds(), Seed: o.seed}, ended: err.Error()})
	}
	for _, r := range rows {
		fmt.Println("  ", r.line())
	}
	return rows
}

func (s scenario) scaled(o options) int { return max(1, int(float64(s.flips)*o.scale+0.5)) }

// budget is the scenario's share of what all of them have.
func (s scenario) budget(o options) time.Duration {
	sum := 0.0
	for _, one := range chosen(o) {
		sum += one.share
	}
	return time.Duration(float64(o.budget) * s.share / sum)
}

// execute runs the test binary in its package's folder, as go test does, with its log in a file.
func (s scenario) execute(ctx context.Context, o options, bin string) error {
	name := filepath.Join(o.out, s.name+"-"+filepath.Base(s.pkg)+".log")
	log, err := os.Create(name)
	if err != nil {
		return err
	}
	defer log.Close()
	// A test that is killed leaves its installations behind: when this run is interrupted, it is told to
	// begin no other trial, and ends by itself.
	cmd := exec.Command(bin, "-test.v", "-test.timeout=3h", "-test.run="+s.test)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defer context.AfterFunc(ctx, func() {
		fmt.Println("   the trials that have begun end first")
		_ = os.WriteFile(filepath.Join(o.out, trials.StopFile), nil, 0o600)
	})()
	cmd.Dir = s.pkg
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(),
		trials.FolderVariable+"="+o.out, fmt.Sprintf("%s=%g", trials.ScaleVariable, o.scale),
		fmt.Sprintf("%s=%g", trials.BudgetVariable, s.budget(o).Seconds()), fmt.Sprintf("%s=%d", trials.SeedVariable, o.seed))
	if s.flips > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("ROOST_FLIPS=%d", s.scaled(o)), fmt.Sprintf("ROOST_FLIPS_SEED=%d", o.seed))
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: see %s", err, name)
	}
	return nil
}

func read(results string) []row {
	f, err := os.Open(results)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []row
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r row
		if json.Unmarshal(lines.Bytes(), &r.Tally) == nil {
			out = append(out, r)
		}
	}
	return out
}
