// Command census wraps a whole test run:
//
//	census snapshot FILE    before it: writes what exists
//	census compare FILE     after it: names what was left behind, exit status 1 if anything was
//
// Both read ROOST_TEST_RUN, the mark of the run's processes, from the environment. Package
// census says what is counted and whose it is.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/test/census"
)

const usage = "usage: census snapshot FILE | census compare FILE"

func main() {
	leaks, err := run(os.Args[1:])
	for _, l := range leaks {
		fmt.Fprintln(os.Stderr, "left behind:", l)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "census:", err)
		os.Exit(2)
	case len(leaks) > 0:
		os.Exit(1)
	}
}

func run(args []string) ([]census.Leak, error) {
	if len(args) != 2 {
		return nil, errors.New(usage)
	}
	scope := census.Machine(os.Getenv(census.RunVariable))
	switch args[0] {
	case "snapshot":
		return nil, snapshot(scope, args[1])
	case "compare":
		return compare(scope, args[1])
	default:
		return nil, errors.New(usage)
	}
}

func snapshot(scope census.Scope, file string) error {
	c, err := census.Take(scope)
	if err != nil {
		return err
	}
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	if c[census.File] == nil {
		c[census.File] = census.Items{}
	}
	c[census.File][file] = file // the census itself is no leak
	b, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

func compare(scope census.Scope, file string) ([]census.Leak, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var before census.Census
	if err := json.Unmarshal(b, &before); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return census.Settle(scope, before, census.Grace)
}
