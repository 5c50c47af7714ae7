package linalg_test
import ("testing";"os";"time";"runtime"
"github.com/loratool/loratool/internal/linalg";"github.com/loratool/loratool/internal/kernel")
func TestScratch2(t *testing.T) {
 if os.Getenv("S2")=="" {t.Skip()}
 if l:=os.Getenv("SL"); l!="" { if err:=kernel.Use(l);err!=nil{t.Fatal(err)} }
 for _,c:=range [][3]int{{4096,4096,0},{14336,4096,64}} {
  rows,cols,k:=c[0],c[1],c[2]
  rng:=newSource(3); a:=linalg.NewMatrix(rows,cols,nil)
  for i:=range a.Data { a.Data[i]=float32(rng.uniform()-.5) }
  if k>0 { b,d:=view(rng,rows,k,0,false),view(rng,k,cols,0,false); linalg.Gemm(0.05,b,d,1,a,2)}
  for _,r:=range []int{16,64,256} {
   var m0,m1 runtime.MemStats; runtime.GC(); runtime.ReadMemStats(&m0)
   c0:=cpuSeconds(); t0:=time.Now()
   v,err:=linalg.Truncate(a,linalg.Options{Rank:r,Threads:1})
   if err!=nil{t.Fatal(err)}
   cpu:=cpuSeconds()-c0
   runtime.ReadMemStats(&m1)
   t.Logf("%v r=%d cpu %.3f wall %.3f steps %d conv %v est %.2e residual %.6f alloc %d MiB sys %d MiB",c,r,cpu,time.Since(t0).Seconds(),v.Steps,v.Converged,v.Report.Excess,v.Residual,(m1.TotalAlloc-m0.TotalAlloc)>>20,m1.Sys>>20)
  }
 }
}
