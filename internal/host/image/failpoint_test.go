//go:build failpoints

package image

import (
	"encoding/json"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

const failpoints = "ROOST_FAILPOINTS"

func TestFailureAtTheCommitLeavesNothing(t *testing.T) { //nolint:paralleltest // sets the environment
	s := openStore(t)
	old := publishSmall(t, s, "base", "kernel", "old")
	t.Setenv(failpoints, "image.publish.commit=error,image.warm.commit=error")
	work, d := smallDraft(t, s, "base", "kernel", "new")
	_, err := s.publish(d)
	require.ErrorContains(t, err, "failpoint image.publish.commit")
	require.NoError(t, work.remove())
	now, err := s.Template("base")
	require.NoError(t, err)
	require.Equal(t, old.Digest, now.Digest)
	require.Len(t, entries(t, s, blobsDir), 3)
	_, err = stageSmall(t, s, smallKey(old), "x").Publish(Warm{Record: json.RawMessage("{}")})
	require.ErrorContains(t, err, "failpoint image.warm.commit")
	_, err = s.Warm(old, smallKey(old))
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.Empty(t, entries(t, s, stageDir))
}

// TestDeathAtTheCommit lets a copy of this test die there: its environment names the store.
func TestDeathAtTheCommit(t *testing.T) { //nolint:paralleltest // sets the environment
	const storeEnv = "IMAGE_TEST_DEATH_STORE"
	if dir := os.Getenv(storeEnv); dir != "" {
		s, err := Open(dir, quiet)
		require.NoError(t, err)
		t.Setenv(failpoints, "image.publish.commit=kill")
		publishSmall(t, s, "base", "other kernel", "new")
		return
	}
	s := openStore(t)
	old := publishSmall(t, s, "base", "kernel", "old")
	exe, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), exe, "-test.run", "^TestDeathAtTheCommit$")
	child.Env = append(os.Environ(), storeEnv+"="+s.Dir())
	require.Error(t, child.Run())
	status, ok := child.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	require.Equal(t, syscall.SIGKILL, status.Signal())
	require.Len(t, entries(t, s, blobsDir), 6, "renamed, and no manifest names them")
	_, err = Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.Len(t, entries(t, s, blobsDir), 3)
	require.Empty(t, entries(t, s, stageDir))
	require.NoError(t, old.Verify())
}
