package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var out T
	dec := json.NewDecoder(strings.NewReader(text))
	require.NoError(t, dec.Decode(&out), text)
	require.False(t, dec.More(), "more than one document: %s", text)
	return out
}

func TestCreatePrintsOnlyTheID(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.progress = func(send func(string)) {
		send(`{"progress":{"step":"boot","detail":"new size"}}`)
		send(fmt.Sprintf(`{"sandbox":{"id":%q}}`, running))
	}
	r := s.run(t, nil, "create", "base", "--vcpus", "2", "--timeout", "10m", "--env", "A=b=c", "--metadata", "owner=ci", "--idempotency-key", "once")
	require.Equal(t, result{running + "\n", "", 0}, r)
	require.Equal(t, 2, *s.lastBody.Vcpus)
	require.Equal(t, 600, *s.lastBody.IdleTimeoutS)
	require.Nil(t, s.lastBody.MemoryMb, "an unset flag leaves the default to the server")
	require.Nil(t, s.lastBody.DiskSizeMb)
	require.Nil(t, s.lastBody.Runtime)
	require.Nil(t, s.lastBody.Cold)
	require.Equal(t, map[string]string{"A": "b=c"}, *s.lastBody.Env)
	require.Equal(t, map[string]string{"owner": "ci"}, *s.lastBody.Metadata)
	require.Equal(t, "once", s.lastIdem)
}

func TestCreateShowsSlowStepsAsLines(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.progress = func(send func(string)) {
		send(`{"progress":{"step":"boot","detail":"new \u001b[31msize"}}`)
		time.Sleep(1300 * time.Millisecond)
		send(fmt.Sprintf(`{"sandbox":{"id":%q}}`, running))
	}
	r := s.run(t, nil, "create")
	require.Equal(t, running+"\n", r.stdout)
	require.Equal(t, "roost: boot new  [31msize …\n", r.stderr)
	require.Empty(t, s.run(t, nil, "create", "-q").stderr)
}

func TestCreateFailures(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "create", "nope")
	require.Equal(t, result{"", "roost: create nope: find template nope: there is none\nhint: roost template ls\n", 1}, r)
	s.progress = func(send func(string)) {
		send(`{"error":{"code":"resource_exhausted","message":"no memory left","hint":"rm some"}}`)
	}
	r = s.run(t, nil, "create", "--json")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.stdout)
	require.Equal(t, v1.Error{Code: "resource_exhausted", Message: "no memory left", Hint: ptr("rm some")}, decode[v1.ErrorBody](t, r.stderr).Error)
	s.progress = func(func(string)) {}
	r = s.run(t, nil, "create")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "the connection ended before the sandbox was ready")
}

func ptr[T any](v T) *T { return &v }

func TestLs(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	out := s.ok(t, "ls")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 3, "head and two that live, from two pages")
	require.Equal(t, []string{"ID", "STATE", "TEMPLATE", "RUNTIME", "ISOLATION", "CPU", "MEM", "DISK", "AGE", "IDLE-TIMEOUT", "REASON"}, strings.Fields(lines[0]))
	require.Regexp(t, `qemu +emulated`, lines[1])
	require.Contains(t, lines[1], "12 MiB/5.0 GiB")
	require.Contains(t, lines[1], "3h")
	require.Contains(t, lines[2], "idle for 5m")
	all := s.ok(t, "ls", "-a")
	require.Contains(t, all, "boom  [31mred", "control characters of a reason stay out of the terminal")
	require.Equal(t, pausedID+"\n", s.ok(t, "ls", "-q", "--state", "paused"))
	list := decode[v1.SandboxList](t, s.ok(t, "ls", "-a", "--json"))
	require.Len(t, list.Sandboxes, 3)
	require.EqualValues(t, 12<<20, *list.Sandboxes[0].DiskUsedBytes)
	require.Equal(t, 2, s.run(t, nil, "ls", "--state", "odd").code)
}

func TestInfoPauseResumeTimeout(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	out := s.ok(t, "info", running)
	require.Regexp(t, `Isolation +emulated`, out)
	require.Regexp(t, `Phases +restore 41.5 ms`, out)
	require.Equal(t, running, decode[v1.Sandbox](t, s.ok(t, "info", running, "--json")).Id)
	require.Equal(t, running+"\n", s.ok(t, "pause", running))
	require.Equal(t, v1.Running, decode[v1.Sandbox](t, s.ok(t, "resume", running, "--json")).State)
	s.ok(t, "timeout", running, "2h")
	require.Equal(t, 7200, s.sandboxes[running].IdleTimeoutS)
	s.ok(t, "timeout", running, "0")
	require.Equal(t, 0, s.sandboxes[running].IdleTimeoutS)
	r := s.run(t, nil, "timeout", running, "1.5s")
	require.Equal(t, 2, r.code)
	require.Contains(t, r.stderr, `"1.5s" is no time`)
	r = s.run(t, nil, "pause", "zzzzzzzzzzzzzzzzzzzz")
	require.Equal(t, result{"", "roost: pause zzzzzzzzzzzzzzzzzzzz: find sandbox zzzzzzzzzzzzzzzzzzzz: there is none\nhint: roost ls shows them\n", 1}, r)
}

func TestRm(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "rm", "aaaaaaa", running, pausedID)
	require.Equal(t, 1, r.code)
	require.Equal(t, running+"\n"+pausedID+"\n", r.stdout, "one failure does not keep the others")
	require.Contains(t, r.stderr, "roost: rm aaaaaaa: ")
	require.Equal(t, 2, s.run(t, nil, "rm").code)
	require.Equal(t, 2, s.run(t, nil, "rm", "--all", running).code)
	require.Equal(t, 2, s.run(t, nil, "rm", "../x").code)
	r = s.run(t, nil, "rm", "--all")
	require.Equal(t, 2, r.code)
	require.Contains(t, r.stderr, "-y")
	require.Len(t, s.sandboxes, 1)
	require.Equal(t, map[string][]string{"deleted": {failedID}}, decode[map[string][]string](t, s.ok(t, "rm", "--all", "-y", "--json")))
	require.Equal(t, `{"deleted":[]}`, strings.Join(strings.Fields(s.ok(t, "rm", "--all", "-y", "--json")), ""))
}

func TestLogs(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.console = []byte("first\nlast\n")
	require.Equal(t, "first\nlast\n", s.ok(t, "logs", running))
	require.Equal(t, "last\n", s.ok(t, "logs", running, "--tail", "5"))
	require.Equal(t, "first\nlast\n", decode[map[string]string](t, s.ok(t, "logs", running, "--json"))["text"])
	require.Equal(t, 2, s.run(t, nil, "logs", running, "--tail", "0").code)
}

func TestLogsFollowUntilTheSandboxEnds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.console = []byte("one\n")
	cmd := s.command(t, "logs", "-f", running)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	read := lineReader(t, out)
	require.Equal(t, "one\n", read())
	s.mu.Lock()
	s.console = append(s.console, "two\n"...)
	s.mu.Unlock()
	require.Equal(t, "two\n", read())
	s.mu.Lock()
	s.console = append(s.console, "bye\n"...)
	s.sandboxes[running].State = v1.Failed
	s.mu.Unlock()
	require.Equal(t, "bye\n", read())
	require.NoError(t, cmd.Wait())
}

func TestTemplatesAndKeys(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Regexp(t, `base +base +- +2 +300 MiB +- +ready +1x512MiB +sha256:abc`, s.ok(t, "template", "ls"))
	require.Equal(t, "base", decode[v1.TemplateList](t, s.ok(t, "template", "ls", "--json")).Templates[0].Name)
	r := s.run(t, nil, "key", "create", "ci")
	require.Equal(t, "roost_abSECRET\n", r.stdout)
	require.Contains(t, r.stderr, "not shown again")
	require.NotContains(t, s.ok(t, "key", "ls"), "SECRET")
	require.Contains(t, s.ok(t, "key", "ls", "--json"), `"prefix": "roost_ab"`)
	require.Equal(t, "key1\n", s.ok(t, "key", "rm", "key1"))
	r = s.run(t, nil, "key", "rm", "key1")
	require.Equal(t, result{"", "roost: key rm key1: revoke key key1: there is none\n", 1}, r)
	require.Equal(t, 2, s.run(t, nil, "key", "odd").code)
	require.Equal(t, 2, s.run(t, nil, "key").code)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	require.Regexp(t, `(?m)^client 1.2.3-test \(go.*\)\nserver 9.9.9 \(http://127.*\)$`, s.ok(t, "version"))
	out := decode[map[string]map[string]any](t, s.ok(t, "version", "--json"))
	require.Equal(t, "9.9.9", out["server"]["version"])
	r := finish(t, bare(t, "version"))
	require.Equal(t, 0, r.code)
	require.Contains(t, r.stdout, "server: no server address")
	r = finish(t, bare(t, "version", "--url", s.URL))
	require.Contains(t, r.stdout, "server 9.9.9", "an address is enough")
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	found := s.ok(t, "doctor")
	require.Regexp(t, `kvm +ok +boots`, found)
	require.Regexp(t, `qemu +emulated +yes +no KVM`, found)
	require.Regexp(t, `gvisor +sentry +no +runsc is not there`, found)
	require.NotContains(t, found, "PRODUCTION")
	s.checks = append(s.checks, v1.Check{Name: "production: swap", Status: v1.Warn, Detail: "on /dev/sda2"}, v1.Check{Name: "production: smt", Status: v1.Ok, Detail: "off"})
	require.Regexp(t, `(?s)kvm +ok +boots.*\n *\nPRODUCTION *\nswap +warn +on /dev/sda2\nsmt +ok +off\n$`, s.ok(t, "doctor"))
	s.checks = append(s.checks, v1.Check{Name: "qemu", Status: v1.Fail, Detail: "missing", Hint: ptr("apt install qemu-system-x86")})
	r := s.run(t, nil, "doctor")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.stderr)
	require.Contains(t, r.stdout, "hint: apt install qemu-system-x86")
	r = s.run(t, nil, "doctor", "--json")
	require.Equal(t, 1, r.code)
	require.Len(t, decode[map[string]any](t, r.stdout)["checks"], 5)
}

func TestDoctorWithoutServer(t *testing.T) {
	t.Parallel()
	for mode, code := range map[string]int{"doctor-ok": 0, "doctor-fail": 1, "1": 1} {
		cmd := bare(t, "doctor", "--url", "http://127.0.0.1:1", "--api-key", "k")
		cmd.Env = append(cmd.Env, asRoost+"="+mode)
		r := finish(t, cmd)
		require.Equal(t, code, r.code, mode)
		require.Contains(t, r.stdout+r.stderr, "cannot reach http://127.0.0.1:1: connection refused")
		if mode != "1" {
			require.Contains(t, r.stdout, "no server answers")
			require.Regexp(t, `qemu +\w+ +local check`, r.stdout)
		}
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := finish(t, bare(t, "ls"))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "roost: ls: no server address and API key found\nhint: start a server here with `roost up`, or set ROOST_URL and ROOST_API_KEY")
	require.Equal(t, 125, finish(t, bare(t, "exec", running, "--", "true")).code)

	for _, place := range []string{".config/roost/client.json", "data/client.json", "xdg/roost/client.json"} {
		cmd := bare(t, "ls", "-q")
		home := strings.TrimPrefix(cmd.Env[1], "HOME=")
		file := filepath.Join(home, place)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `{"url":"%s/","key":%q}`, s.URL, testKey), 0o600))
		if strings.HasPrefix(place, "xdg") {
			cmd.Env = append(cmd.Env, "XDG_CONFIG_HOME="+home+"/xdg")
		}
		require.Equal(t, result{running + "\n" + pausedID + "\n", "", 0}, finish(t, cmd), place)
	}
}

func TestAKeyOfOneServerIsNotSentToAnother(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cmd := bare(t, "ls", "--url", s.URL)
	file := strings.TrimPrefix(cmd.Env[1], "HOME=") + "/.config/roost/client.json"
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `{"url":"http://other.example","key":%q}`, testKey), 0o600))
	r := finish(t, cmd)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "no API key found for "+s.URL)

	redirect := httptest.NewServer(http.RedirectHandler(s.URL+"/v1/sandboxes", http.StatusTemporaryRedirect))
	defer redirect.Close()
	r = finish(t, bare(t, "ls", "--url", redirect.URL, "--api-key", testKey))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "the server answered 307")
}

func TestErrorsArePlain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := finish(t, bare(t, "ls", "--url", s.URL, "--api-key", "wrong"))
	require.Equal(t, result{"", "roost: ls: the API key is not valid\nhint: make one with roost key create\n", 1}, r)
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }))
	defer html.Close()
	r = finish(t, bare(t, "info", running, "--url", html.URL, "--api-key", "k"))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "roost: info "+running+": the server answered 502 Bad Gateway\nhint: ")
	r = finish(t, bare(t, "exec", running, "--url", html.URL, "--api-key", "k", "--", "true"))
	require.Equal(t, 125, r.code)
	require.Contains(t, r.stderr, "the server answered 502")
}

func TestUsageErrorsExit2(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, args := range [][]string{{"odd"}, {"ls", "--odd"}, {"ls", "x"}, {"info"}, {"create", "--timeout", "soon"}, {"create", "--env", "novalue"},
		{"exec", running}, {"exec", running, "--odd", "--", "true"}, {"cp", "a", "b"}, {"cp", running + ":a", running + ":b"}, {"info", "a/b"}, {"ls", "--url", "nowhere"}} {
		r := s.run(t, nil, args...)
		require.Equal(t, 2, r.code, args)
		require.True(t, strings.HasPrefix(r.stderr, "roost: "), r.stderr)
		require.Contains(t, r.stderr, "\nhint: ")
	}
	require.Equal(t, "invalid_argument", decode[v1.ErrorBody](t, s.run(t, nil, "ls", "--json", "--odd").stderr).Error.Code)
}

func TestExtraCommands(t *testing.T) {
	t.Parallel()
	require.Equal(t, result{"", "roost: extra: plain failure\n", 1}, finish(t, bare(t, "extra")))
	require.Equal(t, result{"", "roost: extra: went wrong\n", 7}, finish(t, bare(t, "extra", "x")))
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"create", "ls", "info", "exec", "shell", "cp", "pause", "resume", "rm", "fork", "timeout", "logs", "template ls", "template create", "template rm",
		"snapshot", "snapshot create", "snapshot ls", "snapshot info", "snapshot tree", "snapshot rm", "doctor leaks", "key ls", "key create", "key rm", "doctor", "version"} {
		r := finish(t, bare(t, append(strings.Fields(name), "--help")...))
		require.Equal(t, 0, r.code, name)
		require.Contains(t, r.stdout, "Examples:", name)
	}
	require.Contains(t, finish(t, bare(t, "exec", running, "--help")).stdout, "Examples:")
	require.Equal(t, 0, finish(t, bare(t, "completion", "bash")).code)
}
