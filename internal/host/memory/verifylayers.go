package memory

import "context"

// Verify reads all layers that the map names and checks them as Apply does: every page by its hash,
// every layer by its id. Damage is fault.DataLoss.
func (m *Map) Verify(ctx context.Context, layers *Layers) error {
	_, err := m.walkChecked(ctx, layers.Readers(), func([]byte, uint32) error { return nil })
	return err
}
