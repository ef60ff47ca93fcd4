package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/roosthq/roost/bench/harness"
)

// uffdHandler is the page server against a loop that only copies. It needs no installation: the
// package's own benchmark plays the VMM.
func uffdHandler(ctx context.Context, pairs int) ([]harness.Result, error) {
	out, err := os.CreateTemp("", "roost-uffd-*.json")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(out.Name()) }()
	if err := out.Close(); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "Handler", "-benchtime", "1x", "-timeout", "30m", "./internal/host/memory/uffd")
	cmd.Env = append(os.Environ(), "ROOST_BENCH_OUT="+out.Name(), "ROOST_BENCH_PAIRS="+strconv.Itoa(pairs))
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	raw, err := os.ReadFile(out.Name())
	if err != nil {
		return nil, err
	}
	var results []harness.Result
	err = json.Unmarshal(raw, &results)
	return results, err
}
