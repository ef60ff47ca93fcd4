package cli_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

const unknownID = "zzzzzzzzzzzzzzzzzzzz"

func TestPauseTakesSeveral(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "pause", running, unknownID, failedID)
	require.Equal(t, result{
		running + "\n" + failedID + "\n",
		"roost: pause " + unknownID + ": find sandbox " + unknownID + ": there is none\nhint: roost ls shows them\n", 1,
	}, r, "one failure does not keep the others")
	require.Equal(t, []any{v1.Pause{}, v1.Pause{}, v1.Pause{}}, s.bodies, "an unset flag leaves the default to the server")
	require.Equal(t, 2, s.run(t, nil, "pause").code)
	require.Equal(t, 2, s.run(t, nil, "pause", running, "a/b").code)
	require.Equal(t, 2, s.run(t, nil, "resume").code)
	require.Len(t, s.bodies, 3, "a wrong use changes nothing")
}

func TestPauseDiskOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Equal(t, running+"\n", s.ok(t, "pause", "--disk-only", running))
	require.Equal(t, []any{v1.Pause{DiskOnly: ptr(true)}}, s.bodies)
}

func TestSeveralAsJSON(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Equal(t, pausedID, decode[v1.Sandbox](t, s.ok(t, "resume", pausedID, "--json")).Id, "one is the sandbox itself")
	r := s.run(t, nil, "pause", running, unknownID, "--json")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.stderr)
	type document struct {
		Sandboxes []v1.Sandbox
		Failed    []struct {
			ID    string
			Error v1.Error
		}
	}
	out := decode[document](t, r.stdout)
	require.Equal(t, v1.Paused, out.Sandboxes[0].State)
	require.Equal(t, unknownID, out.Failed[0].ID)
	require.Equal(t, "not_found", out.Failed[0].Error.Code)
	all := s.ok(t, "pause", running, pausedID, "--json")
	require.Len(t, decode[document](t, all).Sandboxes, 2)
	require.NotContains(t, all, "failed\"", "no failures, no field")
	r = s.run(t, nil, "pause", unknownID, "--json")
	require.Empty(t, r.stdout)
	require.Equal(t, "not_found", decode[v1.ErrorBody](t, r.stderr).Error.Code)
}

func TestColdResumeSaysWhatItStartedFrom(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "resume", "--cold", failedID)
	require.Equal(t, result{failedID + "\n", "roost: " + failedID + ": booted from its disk  as it was when it ended\n", 0}, r)
	require.Equal(t, []any{v1.Resume{Cold: ptr(true)}}, s.bodies)
	require.Equal(t, result{pausedID + "\n", "", 0}, s.run(t, nil, "resume", pausedID), "nothing to say of a restore")
	r = s.run(t, nil, "resume", "--cold", failedID, "--json")
	require.Empty(t, r.stderr, "with --json stderr is for errors")
	require.NotNil(t, decode[v1.Sandbox](t, r.stdout).Reason)
}

func TestDamageHasAnExitCode(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.damaged = map[string]string{pausedID: "", failedID: "restore it from a backup"}
	r := s.run(t, nil, "resume", pausedID)
	require.Equal(t, 3, r.code)
	require.Contains(t, r.stderr, "roost: resume "+pausedID+": verify pages.img: its checksum is wrong\nhint: `roost resume --cold "+pausedID+"`")
	r = s.run(t, nil, "resume", failedID)
	require.Equal(t, 3, r.code)
	require.Contains(t, r.stderr, "\nhint: restore it from a backup\n", "the server knows better")
	r = s.run(t, nil, "resume", "--cold", pausedID)
	require.Equal(t, 3, r.code)
	require.NotContains(t, r.stderr, "hint", "no advice to do the same again")
	require.Equal(t, 3, s.run(t, nil, "resume", running, pausedID, unknownID).code, "damage decides")
	r = s.run(t, nil, "resume", running, pausedID, "--json")
	require.Equal(t, 3, r.code)
	require.Contains(t, r.stdout, `"code": "data_loss"`)
	r = s.run(t, nil, "resume", pausedID, "--json")
	require.Equal(t, 3, r.code)
	require.Equal(t, "data_loss", decode[v1.ErrorBody](t, r.stderr).Error.Code)
}

func TestLostSandboxes(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.add(pausedID, v1.Lost, "the host went down while it ran")
	s.sandboxes[pausedID].ForkedFrom = ptr(running)
	require.Regexp(t, pausedID+` +lost .*the host went down while it ran`, s.ok(t, "ls"), "nobody has to look for them")
	require.Equal(t, pausedID+"\n", s.ok(t, "ls", "-q", "--state", "lost"))
	require.Contains(t, s.run(t, nil, "ls", "--state", "odd").stderr, "failed, lost,")
	info := s.ok(t, "info", pausedID)
	require.Regexp(t, `Reason +the host went down while it ran\nNext +roost resume --cold `+pausedID, info)
	require.Regexp(t, `Forked from +`+running, info)
	require.NotContains(t, s.ok(t, "info", running), "Next")
	require.NotContains(t, s.ok(t, "info", running), "Forked")
	s.console = []byte("end\n")
	require.Equal(t, "end\n", s.ok(t, "logs", "-f", pausedID), "no more console will come")
}
