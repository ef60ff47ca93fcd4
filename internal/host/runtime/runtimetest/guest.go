package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/internal/host/guestclient"
)

const guestURL = "http://guest"

// sh runs a shell line as root, which must succeed, and returns its output.
func (b *box) sh(format string, args ...any) string {
	b.Helper()
	ctx := b.ctx()
	out, code, err := b.try(ctx, fmt.Sprintf(format, args...))
	require.NoError(b, err, "%v", context.Cause(ctx))
	require.Zero(b, code, "%s: %s", fmt.Sprintf(format, args...), out)
	return out
}

// try runs a shell line as root and returns output and exit code.
func (b *box) try(ctx context.Context, line string) (string, int, error) {
	stream, err := b.exec(ctx, line)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = stream.Close() }()
	var out bytes.Buffer
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetStderr())
		if end := e.GetEnd(); end != nil {
			return strings.TrimSpace(out.String()), int(end.GetExitCode()), nil
		}
	}
	return out.String(), 0, errors.Join(errors.New("the answer has no end"), stream.Err())
}

// launch starts a shell line as root that goes on by itself, and returns its pid.
func (b *box) launch(format string, args ...any) int {
	b.Helper()
	stream, err := b.exec(b.ctx(), fmt.Sprintf(format, args...))
	require.NoError(b, err)
	defer func() { _ = stream.Close() }()
	require.True(b, stream.Receive(), "%v", stream.Err())
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	require.NotZero(b, pid)
	return int(pid)
}

func (b *box) exec(ctx context.Context, line string) (*connect.ServerStreamForClient[processpb.StartResponse], error) {
	none := false
	req := connect.NewRequest(&processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", line}}, Stdin: &none,
	})
	b.sign(req.Header())
	client := processconnect.NewProcessClient(&http.Client{Transport: b.guest.Transport()}, guestURL)
	return client.Start(ctx, req)
}

// sign makes a request root's.
func (b *box) sign(h http.Header) {
	h.Set(guestclient.AccessHeader, b.id.AccessToken)
	h.Set("Authorization", "Basic cm9vdDo=")
}

var errNoFile = errors.New("no such file")

// read reads a file of the guest; the agent does that itself, while user processes are frozen
// as well.
func (b *box) read(path string) (string, error) {
	req, err := http.NewRequestWithContext(b.ctx(), http.MethodGet, guestURL+"/files?path="+url.QueryEscape(path), nil)
	if err != nil {
		return "", err
	}
	b.sign(req.Header)
	resp, err := b.guest.Transport().RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusNotFound:
		return "", errNoFile
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("read %s: %s: %s", path, resp.Status, text)
	}
	return string(text), nil
}

func (b *box) content(path string) string {
	b.Helper()
	text, err := b.read(path)
	require.NoError(b, err)
	return text
}

// uncached makes the shell line after it read files from the disk anew, where the guest's
// kernel can: a restored page cache would hide a disk that does not go with it.
const uncached = "sync; { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null; "

// ticker is a shell that counts in a variable and writes down each count.
type ticker struct {
	path string
	pid  int
}

func (b *box) tick() ticker {
	b.Helper()
	t := ticker{path: "/root/ticks-" + randomHex(4)}
	t.pid = b.launch(`n=0; while :; do n=$((n+1)); echo $n >>%s; sleep 0.02; done`, t.path)
	b.goesOn(t, 0)
	return t
}

// ticks is how far the ticker is. That it never lost a count or made one twice is checked.
func (b *box) ticks(t ticker) int {
	b.Helper()
	text, err := b.read(t.path)
	if errors.Is(err, errNoFile) {
		return 0
	}
	require.NoError(b, err)
	n := 0
	for line := range strings.Lines(text) {
		n++
		require.Equal(b, strconv.Itoa(n)+"\n", line, "the counter was reset or lost a tick")
	}
	return n
}

// goesOn waits until the ticker is past n and returns how far it is.
func (b *box) goesOn(t ticker, n int) int {
	b.Helper()
	have := 0
	b.await("a tick after "+strconv.Itoa(n), func() bool { have = b.ticks(t); return have > n })
	return have
}

// await waits until done says so.
func (b *box) await(what string, done func() bool) {
	b.Helper()
	ctx := b.ctx()
	for !done() {
		select {
		case <-ctx.Done():
			if !done() { // the sandbox's end may be what is awaited
				require.FailNow(b, "waiting for "+what, context.Cause(ctx))
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// rootMB is the size of the guest's root file system.
func (b *box) rootMB() int {
	b.Helper()
	fields := strings.Fields(b.sh("df -k / | tail -n 1"))
	require.Greater(b, len(fields), 2)
	kb, err := strconv.Atoi(fields[len(fields)-5])
	require.NoError(b, err)
	return kb >> 10
}

// ofUID lists the processes of a uid that have not ended.
func ofUID(t testing.TB, uid int) []int {
	t.Helper()
	return processes(t, func(pid int) bool {
		dir := fmt.Sprintf("/proc/%d", pid)
		st, err := os.Stat(dir)
		if err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != uid {
			return false
		}
		// A zombie holds nothing; its parent may be slow to ask for it.
		text, err := os.ReadFile(dir + "/stat")
		if err != nil {
			return false
		}
		_, state, _ := strings.Cut(string(text), ") ")
		return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
	})
}
