package gvisor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/runtime"
)

func TestLife(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("echo kept >/root/file; (n=0; while :; do n=$((n+1)); echo $n >/root/n; sleep 0.05; done) >/dev/null 2>&1 &")
	c, stats := b.capture(runtime.CaptureOptions{})
	t.Logf("capture: %v", stats)
	require.NoError(t, b.in.Stop(b.ctx()))
	n := b.restored(c)
	require.Equal(t, "kept", n.run("cat /root/file"))
	t.Log(n.run("cat /root/n; ps; df -k / | tail -1; free -m; mount"))
}
