package main

import (
	"errors"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPackageNamesInDependencies(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"cpp", "gcc-12", "libc6", "g++", "perl"},
		namesIn("cpp (= 4:12.2.0-3), gcc-12 (>= 12.2.0-1~), libc6 | g++ (<< 1), perl:any"))
	require.Empty(t, namesIn(","))
}

func TestManyCallsAllAndTellsEveryFailure(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	broken := errors.New("broken")
	err := many(9, 3, func(i int) error {
		calls.Add(1)
		if i == 4 {
			return broken
		}
		return nil
	})
	require.ErrorIs(t, err, broken)
	require.EqualValues(t, 9, calls.Load())
}

func TestMappingsOfThisProcess(t *testing.T) {
	t.Parallel()
	maps, err := mappingsOf(os.Getpid())
	require.NoError(t, err)
	var private, pss int64
	names := map[string]bool{}
	for _, m := range maps {
		private, pss = private+m.private, pss+m.pss
		names[m.name] = true
	}
	require.Positive(t, private)
	require.GreaterOrEqual(t, pss, private)
	require.True(t, names["[stack]"])
}

// The work does what it says where it runs; a short loop stands for all of it.
func TestWorkRuns(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "python3", "work/run.py", "loop").Output()
	require.NoError(t, err)
	got, err := numbers(string(out))
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Positive(t, got[0])
}
