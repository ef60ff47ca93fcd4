package cli_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func twoForks() *v1.ForkResult {
	return &v1.ForkResult{FrozenMs: 12.4, Sandboxes: []v1.Sandbox{{Id: strings.Repeat("d", 20)}, {Id: strings.Repeat("e", 20)}}}
}

func TestFork(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.forks = twoForks()
	r := s.run(t, nil, "fork", running, "-n", "2", "--timeout", "1h", "--env", "ROLE=worker", "--metadata", "run=7")
	require.Equal(t, result{"dddddddddddddddddddd\neeeeeeeeeeeeeeeeeeee\n", "", 0}, r)
	s.ok(t, "fork", running)
	s.ok(t, "fork", running, "--timeout", "never")
	require.Equal(t, []any{
		v1.Fork{Count: ptr(2), IdleTimeoutS: ptr(3600), Env: &map[string]string{"ROLE": "worker"}, Metadata: &map[string]string{"run": "7"}},
		v1.Fork{Count: ptr(1)},
		v1.Fork{Count: ptr(1), IdleTimeoutS: ptr(0)},
	}, s.bodies)
	out := decode[v1.ForkResult](t, s.ok(t, "fork", running, "--json"))
	require.Len(t, out.Sandboxes, 2)
	require.InDelta(t, 12.4, out.FrozenMs, 0)
	r = s.run(t, nil, "fork", unknownID)
	require.Equal(t, result{"", "roost: fork " + unknownID + ": find sandbox " + unknownID + ": there is none\nhint: roost ls shows them\n", 1}, r)
	for _, args := range [][]string{{}, {running, "x"}, {"a/b"}, {running, "-n", "0"}, {running, "-n", "65"}, {running, "-n", "x"}, {running, "--timeout", "soon"}, {running, "--timeout", ""}, {running, "--env", "A"}} {
		require.Equal(t, 2, s.run(t, nil, append([]string{"fork"}, args...)...).code, args)
	}
}

func TestForkOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.forks = twoForks()
	sc := s.onTerminal(t, s.command(t, "fork", running, "-n", "2"))
	require.Equal(t, 0, sc.code())
	require.Regexp(t, `roost: 2 forks in \d[\d.]* m?s; `+running+` was frozen for 12 ms\r\nd{20}\r\ne{20}\r\n`, sc.shown())
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Equal(t, result{"no leaks\n", "", 0}, s.run(t, nil, "doctor", "leaks"))
	require.JSONEq(t, `{"leaks":[]}`, s.ok(t, "doctor", "leaks", "--json"))
	s.leaks = []v1.Leak{{Kind: "stage", Name: "abc.tmp", Detail: "a snapshot that was not finished", Bytes: ptr(int64(12 << 20))}, {Kind: "process", Name: "4711", Detail: "uid 100003\x1b", Error: ptr("it does not end")}}
	r := s.run(t, nil, "doctor", "leaks")
	require.Equal(t, 1, r.code)
	require.Regexp(t, `KIND +NAME +SIZE +DETAIL\nstage +abc.tmp +12 MiB +a snapshot that was not finished\nprocess +4711 +- +uid 100003 \n`, r.stdout)
	require.Equal(t, "roost: `roost doctor leaks --fix` removes them\n", r.stderr)
	r = s.run(t, nil, "doctor", "leaks", "--json")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.stderr)
	require.Len(t, decode[v1.LeakList](t, r.stdout).Leaks, 2)

	r = s.run(t, nil, "doctor", "leaks", "--fix")
	require.Equal(t, 1, r.code, "one could not be removed")
	require.Contains(t, r.stdout, "a snapshot that was not finished; removed\n")
	require.Contains(t, r.stdout, "; NOT removed: it does not end\n")
	s.leaks[0].Error = nil
	r = s.run(t, nil, "doctor", "leaks", "--fix", "--json")
	require.Equal(t, 0, r.code, "all removed")
	require.True(t, decode[v1.LeakList](t, r.stdout).Leaks[0].Removed)
	require.Equal(t, "no leaks\n", s.ok(t, "doctor", "leaks", "--fix"))
	require.Equal(t, 2, s.run(t, nil, "doctor", "leaks", "x").code)
	require.Equal(t, 2, s.run(t, nil, "doctor", "leaks", "--with-data").code, "it goes with --fix")
	s.ok(t, "doctor", "leaks", "--fix", "--with-data")
	require.Equal(t, 2, s.run(t, nil, "doctor", "odd").code)
}
