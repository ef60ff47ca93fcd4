package disktest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
)

const (
	randomOps = 200
	// mostGrown bounds the model, not the driver.
	mostGrown = 96 * mb
)

// player does random operations on a disk and on a model of it.
type player struct {
	*rig
	live  disk.Live
	vm    VM
	model []byte
	made  int
	log   []string
}

func randomOperations(r *rig) {
	seed := randomSeed(r)
	r.Logf("DISKTEST_SEED=%d repeats this run", seed)
	r.rand = rand.New(rand.NewPCG(seed, 0))
	check := r.unchanged(disk.Stack{Base: r.base})
	p := &player{rig: r, live: r.create(), model: bytes.Clone(r.content)}
	p.vm = r.run(p.live)
	defer func() {
		if r.Failed() {
			r.Log(p.log)
		}
	}()
	for range randomOps {
		p.step()
	}
	r.same(p.model, r.readAll(p.vm))
	r.stop(p.vm, p.live)
	check()
}

func randomSeed(r *rig) uint64 {
	text, found := os.LookupEnv("DISKTEST_SEED")
	if !found {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	require.NoError(r, err, "DISKTEST_SEED")
	return seed
}

// step does one operation; the heavy ones are rare.
func (p *player) step() {
	ops := []struct {
		weight int
		name   string
		do     func()
	}{
		{50, "write", p.randomWrite},
		{12, "zero", p.randomZero},
		{6, "discard", p.randomDiscard},
		{20, "read", p.randomRead},
		{4, "flush", func() { require.NoError(p, p.vm.Flush()) }},
		{4, "live seal", p.liveSeal},
		{4, "reseat", p.reseat},
		{2, "grow", p.growMore},
		{2, "merge", p.mergeSome},
		{2, "flatten", p.flattenAll},
		{2, "crash", p.crash},
	}
	n := p.rand.IntN(108)
	for _, op := range ops {
		if n -= op.weight; n < 0 {
			p.log = append(p.log, op.name)
			op.do()
			return
		}
	}
}

// span is a random range, in sectors; half of them fall on what the base and layers share.
func (p *player) span() (offset, n int64) {
	size := int64(len(p.model))
	if p.rand.IntN(2) == 0 {
		size = 4 * mb
	}
	n = 512 * (1 + p.rand.Int64N(400))
	return 512 * p.rand.Int64N((size-n)/512+1), n
}

func (p *player) randomWrite() {
	offset, n := p.span()
	p.put(p.vm, p.model, offset, int(n))
}

func (p *player) randomZero() {
	offset, n := p.span()
	clear(p.model[offset : offset+n])
	require.NoError(p, p.vm.Zero(offset, n))
}

// randomDiscard discards zeros only: any other content is undefined afterwards.
func (p *player) randomDiscard() {
	offset, n := p.span()
	clear(p.model[offset : offset+n])
	require.NoError(p, p.vm.Zero(offset, n))
	require.NoError(p, p.vm.Discard(offset, n))
}

func (p *player) randomRead() {
	offset, n := p.span()
	got := make([]byte, n)
	_, err := p.vm.ReadAt(got, offset)
	require.NoError(p, err)
	p.same(p.model[offset:offset+n], got)
}

// room merges when one more layer would be too many.
func (p *player) room() {
	if len(p.live.Stack.Layers) >= disk.MaxDepth-1 {
		p.mergeSome()
	}
}

func (p *player) liveSeal() {
	if !p.Capabilities().LiveSeal {
		p.reseat()
		return
	}
	p.room()
	_, next, err := p.Seal(p.Context(), p.live, p.nextIndex(), p.vm.Switch)
	require.NoError(p, err)
	p.live = *next
}

// down ends the VM and seals its disk; up starts one on a new disk over the stack.
func (p *player) down() disk.Stack {
	p.stop(p.vm, p.live)
	return p.seal(p.live)
}

func (p *player) up(stack disk.Stack) {
	p.live = p.open(stack)
	p.vm = p.run(p.live)
}

func (p *player) reseat() {
	p.room()
	p.up(p.down())
}

func (p *player) growMore() {
	p.stop(p.vm, p.live)
	size := min(p.live.SizeBytes+disk.SizeUnit*(1+p.rand.Int64N(64)), mostGrown)
	grown, err := p.Grow(p.Context(), p.live, size)
	require.NoError(p, err)
	p.model = append(p.model, make([]byte, size-p.live.SizeBytes)...)
	p.live = grown
	p.vm = p.run(grown)
}

// mergeSome merges from a random layer upwards and removes what it merged.
func (p *player) mergeSome() {
	stack := p.down()
	from := 0
	if n := len(stack.Layers); n > 3 {
		from = p.rand.IntN(n - 2) // Three or more, to make room for two.
	}
	below := disk.Stack{Base: stack.Base, Layers: stack.Layers[:from]}
	old := stack.Layers[from:]
	merged, err := p.Merge(p.Context(), below, old, p.fresh("merged"))
	require.NoError(p, err)
	for _, l := range old {
		require.NoError(p, p.RemoveLayer(p.Context(), l))
	}
	p.up(below.With(merged))
}

func (p *player) fresh(name string) string {
	p.made++
	return filepath.Join(p.dir, fmt.Sprintf("%s-%d", name, p.made))
}

// flattenAll flattens, compares everything, and goes on over the flat image half of the time.
func (p *player) flattenAll() {
	stack := p.down()
	flat, err := p.Flatten(p.Context(), stack, p.fresh("flat"))
	require.NoError(p, err)
	got, err := os.ReadFile(flat.Path)
	require.NoError(p, err)
	p.same(p.model, got)
	if p.rand.IntN(2) == 0 {
		stack = disk.Stack{Base: flat}
	}
	if len(stack.Layers) < disk.MaxDepth {
		p.up(stack)
		return
	}
	merged, err := p.Merge(p.Context(), disk.Stack{Base: stack.Base}, stack.Layers, p.fresh("merged"))
	require.NoError(p, err)
	p.up(disk.Stack{Base: stack.Base}.With(merged))
}

func (p *player) crash() {
	require.NoError(p, p.vm.Flush())
	p.vm.Kill()
	require.NoError(p, p.Detach(p.Context(), p.live))
	p.vm = p.run(p.live)
	p.same(p.model, p.readAll(p.vm))
}
