package block

import (
	"sync"

	"github.com/loratool/loratool/internal/kernel"
)

// The grids as encoders see them, made when first used: 100 KiB to 1.5 MiB each, in up to
// 30 ms. What decoders take for values are levels 0, 1, 2, ... there.
var (
	bookIQ1    = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ1), 8, 3, 3) })
	bookIQ2XXS = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ2XXS), 8, 3, 2) })
	bookIQ2XS  = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ2XS), 8, 3, 2) })
	bookIQ2S   = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ2S), 8, 3, 1) })
	bookIQ3XXS = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ3XXS), 4, 8, 2) })
	bookIQ3S   = sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ3S), 4, 8, 3) })
)
