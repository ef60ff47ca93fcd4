package cli_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func TestSnapshotCreate(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Equal(t, result{"ready\n", "", 0}, s.run(t, nil, "snapshot", "create", running, "--name", "ready"))
	require.Equal(t, "ssssssssssssssssssss\n", s.ok(t, "snapshot", "create", running))
	require.Equal(t, []any{v1.CreateSnapshot{SandboxId: running, Name: ptr("ready")}, v1.CreateSnapshot{SandboxId: running}}, s.bodies)
	made := decode[v1.Template](t, s.ok(t, "snapshot", "create", running, "--json"))
	require.InDelta(t, 45.2, *made.FrozenMs, 0)
	require.EqualValues(t, 60<<20, made.SizeBytes)
	for _, bad := range []string{"", "Ready", "a/b", "-x", strings.Repeat("a", 64)} {
		r := s.run(t, nil, "snapshot", "create", running, "--name", bad)
		require.Equal(t, 2, r.code, bad)
		require.Contains(t, r.stderr, "is no name")
	}
	require.Equal(t, 2, s.run(t, nil, "snapshot", "create").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "create", "a/b").code)
	r := s.run(t, nil, "snapshot", "create", unknownID)
	require.Equal(t, 1, r.code)
	require.True(t, strings.HasPrefix(r.stderr, "roost: snapshot create "+unknownID+": "), r.stderr)
}

func TestSnapshotCreateOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "snapshot", "create", running, "--name", "ready"))
	require.Equal(t, 0, sc.code())
	sc.want("roost: snapshot ready, 60 MiB; " + running + " was frozen for 45 ms\r\nready\r\n")
	sc = s.onTerminal(t, s.command(t, "snapshot", "create", pausedID))
	require.Equal(t, 0, sc.code())
	sc.want(pausedID + " was paused\r\n")
}

func TestSnapshotLs(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.JSONEq(t, `{"templates":[]}`, s.ok(t, "snapshot", "ls", "--json"))
	made := snapshot("ready", running)
	made.CreatedAt = ptr(time.Now().Add(-5 * time.Hour))
	bare := snapshot("bare", pausedID)
	bare.State, bare.Reason = ptr("lost"), ptr("the host no longer has it")
	bare.Parent, bare.OwnBytes, bare.Children, bare.Runtime = nil, nil, nil, nil
	s.snapshots = []v1.Template{made, bare}
	lines := strings.Split(strings.TrimSpace(s.ok(t, "snapshot", "ls")), "\n")
	require.Equal(t, strings.Fields("NAME FROM TEMPLATE RUNTIME SIZE OWN CHILDREN AGE STATE"), strings.Fields(lines[0]))
	require.Equal(t, strings.Fields("ready "+running+" base gvisor 60 MiB 12 MiB 0 5h ready"), strings.Fields(lines[1]))
	require.Equal(t, strings.Fields("bare "+pausedID+" - - 60 MiB - - - lost (the host no longer has it)"), strings.Fields(lines[2]))
	require.Equal(t, "ready\n", s.ok(t, "snapshot", "ls", "-q", "--sandbox", running))
	require.Len(t, decode[v1.TemplateList](t, s.ok(t, "snapshot", "ls", "--json")).Templates, 2)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "ls", "--sandbox", "a/b").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "ls", "--sandbox", "").code)
}

func TestSnapshotInfo(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.snapshots = []v1.Template{snapshot("ready", running)}
	s.snapshots[0].DiskOnly = ptr(true)
	out := s.ok(t, "snapshot", "info", "ready")
	for _, want := range []string{`Own +12 MiB`, `From +` + running, `Memory +512 MiB`, `Frozen +45 ms`, `Holds +disk\n`, `Isolation +sentry`} {
		require.Regexp(t, want, out)
	}
	require.Equal(t, "id-ready", decode[v1.Template](t, s.ok(t, "snapshot", "info", "id-ready", "--json")).Id)
	require.Equal(t, result{"", "roost: snapshot info nope: find template nope: there is none\n", 1}, s.run(t, nil, "snapshot", "info", "nope"))
	require.Equal(t, 2, s.run(t, nil, "snapshot", "info", "../x").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "odd").code)
}

func TestSnapshotRm(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.snapshots = []v1.Template{snapshot("one", running), snapshot("two", running), snapshot("stuck", running)}
	s.snapshots[1].Children = ptr(3)
	r := s.run(t, nil, "snapshot", "rm", "one", "two", "stuck", "gone-already")
	require.Equal(t, 1, r.code)
	require.Equal(t, "one\ntwo\ngone-already\n", r.stdout)
	require.Equal(t, "roost: 3 sandboxes and snapshots come from two: they go on, and what they need of its data stays until they end\n"+
		"roost: snapshot rm stuck: delete snapshot stuck: the host does not answer\nhint: roost doctor\n", r.stderr)
	require.Len(t, s.snapshots, 1)
	require.Equal(t, "one\n", s.ok(t, "snapshot", "rm", "one"), "again is a success")
	require.Equal(t, 2, s.run(t, nil, "snapshot", "rm").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "rm", "one", "../x").code)
	s.snapshots[0].Children = ptr(1)
	s.snapshots = append(s.snapshots, snapshot("used", running))
	s.snapshots[1].Children = ptr(1)
	r = s.run(t, nil, "snapshot", "rm", "used", "stuck", "--json")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.stderr)
	require.JSONEq(t, `{"deleted":["used"],"in_use":[{"name":"used","children":1}],
		"failed":[{"name":"stuck","error":{"code":"unavailable","message":"delete snapshot stuck: the host does not answer","hint":"roost doctor"}}]}`, r.stdout)
}

func TestTemplateRm(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.templates = append(s.templates, v1.Template{Id: "tdjango", Name: "django", Type: v1.Base})
	require.Equal(t, "django\n", s.ok(t, "template", "rm", "django"))
	require.JSONEq(t, `{"deleted":["django"]}`, s.ok(t, "template", "rm", "django", "--json"))
	r := s.run(t, nil, "template", "rm", "base")
	require.Equal(t, result{"", "roost: template rm base: delete template base: the host builds it\n", 1}, r)
	require.Equal(t, 2, s.run(t, nil, "template", "rm").code)
}

func TestTemplateLsShowsWhereOneComesFrom(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.templates = append(s.templates, v1.Template{Name: "django", Type: v1.Base, SourceSandboxId: ptr(running), Parent: ptr("base"), Children: ptr(0)}, v1.Template{Name: "flask", Type: v1.Base, Parent: ptr("ready")})
	out := s.ok(t, "template", "ls")
	require.Regexp(t, `NAME +TYPE +FROM +CHILDREN +SIZE +AGE +STATE +WARM +DIGEST`, out)
	require.Regexp(t, `django +base +`+running+` +0 `, out)
	require.Regexp(t, `flask +base +ready +- `, out)
}

func TestTemplateCreate(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Equal(t, result{"django\n", "", 0}, s.run(t, nil, "template", "create", "django", "--from", running))
	s.progress = func(send func(string)) {
		send(`{"progress":{"step":"export","detail":"files"}}`)
		send(`{"template":{"name":"django","size_bytes":94371840}}`)
	}
	out := s.ok(t, "template", "create", "django", "--from", "ready", "--disk-only", "--json")
	require.EqualValues(t, 90<<20, decode[v1.Template](t, out).SizeBytes)
	require.Equal(t, []any{v1.CreateTemplate{Name: "django", From: running}, v1.CreateTemplate{Name: "django", From: "ready", DiskOnly: ptr(true)}}, s.bodies)
	r := s.run(t, nil, "template", "create", "base", "--from", running)
	require.Equal(t, result{"", "roost: template create base: there is one\n", 1}, r)
	s.progress = func(send func(string)) {
		send(`{"error":{"code":"data_loss","message":"verify disk: damaged","hint":"use another snapshot"}}`)
	}
	r = s.run(t, nil, "template", "create", "django", "--from", "ready")
	require.Equal(t, result{"", "roost: template create django: verify disk: damaged\nhint: use another snapshot\n", 3}, r)
	s.progress = func(func(string)) {}
	r = s.run(t, nil, "template", "create", "django", "--from", "ready")
	require.Contains(t, r.stderr, "the connection ended before the template was ready")
	for _, args := range [][]string{{"django"}, {"--from", running}, {"Django", "--from", running}, {"django", "--from", "a/b"}} {
		require.Equal(t, 2, s.run(t, nil, append([]string{"template", "create"}, args...)...).code, args)
	}
}

func TestTemplateCreateOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	gate := make(chan struct{})
	s.progress = func(send func(string)) {
		send(`{"progress":{"step":"export","detail":"files"}}`)
		<-gate
		send(`{"template":{"name":"django","size_bytes":94371840,"vcpus":2,"memory_mb":512,"runtime":"gvisor"}}`)
	}
	sc := s.onTerminal(t, s.command(t, "template", "create", "django", "--from", running))
	sc.want(" export files (0 s)")
	close(gate)
	require.Equal(t, 0, sc.code())
	sc.want("roost: template django, 90 MiB; sandboxes of 2 vCPUs and 512 MiB in gvisor start with what ran\r\ndjango\r\n")
	s.progress = nil
	sc = s.onTerminal(t, s.command(t, "template", "create", "django", "--from", running))
	require.Equal(t, 0, sc.code())
	sc.want("sandboxes of it boot, once for each size\r\n")
}
